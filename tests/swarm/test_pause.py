"""An owner who wants his machine back gets it, and no client notices more than a replica's address."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shoal.client.engine.sampler import Sampling
from shoal.node.announcer import Announcer, Claim, Load
from shoal.node.guest.decision import Sensors, Verdict
from shoal.node.guest.guest import Guest
from shoal.node.guest.pause_file import PauseFile
from shoal.node.guest.transfer_meter import TransferMeter
from shoal.node.serving.admission import Admission, AdmissionLimits, Demand, Wire
from shoal.node.serving.gate import WorkGate
from shoal.node.settings import GuestSettings
from shoal.protocol.control import PauseReason
from shoal.protocol.errors import CoverageGap, Draining
from shoal.protocol.ids import PeerId
from shoal.protocol.net.channel import Traffic
from tests.checkpoints import SHAPES, write_checkpoint
from tests.swarm.world import World, memory_swarm

PROMPT = [5, 17, 3]
SAMPLING = Sampling(max_tokens=12, ignore_eos=True)
DEMAND = Demand(PeerId("a client"), 5)


def an_admission(wire: Wire = Wire()) -> Admission:  # noqa: B008
    return Admission(AdmissionLimits(), lambda: 0.0, wire)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pause") / "model"
    write_checkpoint(directory, SHAPES["plain"], seed=22)
    return directory


@asynccontextmanager
async def swarm_of(model: Path, cache: Path, words: list[str]) -> AsyncIterator[World]:
    """A swarm whose nodes also keep their records as their gates say."""
    async with memory_swarm(model, words, cache) as world:
        renewing = [asyncio.create_task(announcer.run()) for announcer in world.announcers.values()]
        yield world
        for task in renewing:
            task.cancel()
        await asyncio.gather(*renewing, return_exceptions=True)


async def answer(world: World) -> list[int]:
    return [token.id async for token in world.swarm.stream(PROMPT, SAMPLING)]


def busiest(world: World) -> PeerId:
    return max(world.servers, key=lambda peer: world.servers[peer].metrics.requests_served)


def test_a_pause_in_mid_answer_changes_no_token_and_stops_every_call(model: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with swarm_of(model, tmp_path, ["all", "all"]) as world:
            expected, tokens, paused = await answer(world), list[int](), busiest(world)
            served_at_pause = 0
            async for token in world.swarm.stream(PROMPT, SAMPLING):
                tokens.append(token.id)
                if token.index == 3:
                    await world.gates[paused].close()
                    served_at_pause = world.servers[paused].metrics.requests_served
            assert tokens == expected
            assert world.servers[paused].metrics.requests_served == served_at_pause
            other = next(peer for peer in world.servers if peer != paused)
            world.gates[paused].open()
            await world.gates[other].close()
            health = world.client.holders.holder(paused).health
            health.doubted_until = health.busy_until = 0.0  # as after the time it is left alone for
            await world.client.holders.refresh()
            assert await answer(world) == expected  # the resumed node alone
            assert world.servers[paused].metrics.requests_served > served_at_pause

    asyncio.run(main())


def test_a_paused_node_has_withdrawn_and_a_resumed_one_is_found_again(model: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with swarm_of(model, tmp_path, ["all"]) as world:
            gate = world.gates[world.peers[0]]

            async def announced() -> bool:
                await asyncio.sleep(0.05)  # the announcer's own turn
                found = await world.client.directory.lookup(world.store.manifest.root, world.store.spec.moe_layers)
                return any(record.experts for records in found.values() for record in records)

            assert await announced()
            await gate.close()
            assert not await announced()
            with pytest.raises(CoverageGap):
                await answer(world)
            gate.open()
            assert await announced()

    asyncio.run(main())


class Machine:
    """Sensors and a clock that a test moves."""

    def __init__(self) -> None:
        self.now_s, self.temperature_c = 1_795_348_800.0, 50.0

    def clock(self) -> float:
        return self.now_s

    def read(self, now_s: float, month_bytes: int) -> Sensors:
        return Sensors(now_s, temperature_c=self.temperature_c, month_bytes=month_bytes)


def guest_of(machine: Machine, tmp_path: Path, traffic: Traffic, settings: GuestSettings) -> Guest:
    meter = TransferMeter(tmp_path / "t.json", traffic, lambda: "2026-11", settings.monthly_bytes)
    return Guest(settings, machine.read, meter, PauseFile(tmp_path / "p.json"), machine.clock)


class Switch(WorkGate):
    """A gate that opens on nothing."""

    def __init__(self) -> None:
        claim = Claim(PeerId("x"), b"", {}, 1, 0, ())
        announcer = Announcer(None, claim, lambda: Load(0, 0))  # type: ignore[arg-type]
        super().__init__(None, Admission(AdmissionLimits(), lambda: 0.0), (), announcer)  # type: ignore[arg-type]

    def open(self) -> None:
        self._is_open = True

    async def close(self) -> None:
        self._is_open = False


def test_the_guest_follows_the_owner_at_once_and_the_machine_at_the_next_look(tmp_path: Path) -> None:
    async def main() -> None:
        machine, gate, traffic = Machine(), Switch(), Traffic()
        guest = guest_of(machine, tmp_path, traffic, GuestSettings(monthly_bytes=1000))
        assert (await guest.first_verdict()).reason is None
        guarding = asyncio.create_task(guest.run(gate))
        await asyncio.sleep(0)
        await guest.pause(7200)
        assert not gate.is_open
        assert guest.verdict.until_s == machine.now_s + 7200
        await guest.resume()
        assert gate.is_open
        machine.temperature_c, machine.now_s = 95.0, machine.now_s + 6
        await guest._look()
        assert guest.verdict.reason is PauseReason.TEMPERATURE
        await guest.resume()  # a resume does not cool a processor
        assert not gate.is_open
        machine.temperature_c, machine.now_s = 60.0, machine.now_s + 6
        await guest._look()
        assert guest.verdict.reason is None
        traffic.bytes_sent = 1001
        await guest._look()
        assert guest.verdict.reason is PauseReason.MONTHLY_CAP
        guarding.cancel()

    asyncio.run(main())


def test_a_pause_outlives_its_node_and_ends_when_it_was_to_end(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine()
        await guest_of(machine, tmp_path, Traffic(), GuestSettings()).pause(7200)
        until_s = machine.now_s + 7200
        machine.now_s += 3600
        again = guest_of(machine, tmp_path, Traffic(), GuestSettings())
        assert await again.first_verdict() == Verdict(PauseReason.USER, until_s)
        machine.now_s = until_s
        assert await guest_of(machine, tmp_path, Traffic(), GuestSettings()).first_verdict() == Verdict()
        await again.pause(None)
        forever = guest_of(machine, tmp_path, Traffic(), GuestSettings())
        assert await forever.first_verdict() == Verdict(PauseReason.USER)
        await forever.resume()
        assert await guest_of(machine, tmp_path, Traffic(), GuestSettings()).first_verdict() == Verdict()

    asyncio.run(main())


def test_a_pause_that_can_not_be_kept_is_a_pause_all_the_same(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "p.new").mkdir()  # where the file would be written first
        guest = guest_of(Machine(), tmp_path, Traffic(), GuestSettings())
        await guest.pause(None)
        assert guest.verdict.reason is PauseReason.USER

    asyncio.run(main())


def test_what_is_in_flight_is_finished_and_what_waits_too_long_is_refused(model: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with memory_swarm(model, ["all"], tmp_path) as world:
            server, admission = world.servers[world.peers[0]], an_admission()
            gate = WorkGate(server, admission, [], world.announcers[world.peers[0]])
            with admission.admit(DEMAND):
                closing = asyncio.create_task(gate.close())
                await asyncio.sleep(0)
                with pytest.raises(Draining), admission.admit(DEMAND):
                    pass
                assert not closing.done()
            await closing
            gate.open()
            with admission.admit(DEMAND):
                pass

    asyncio.run(main())


def test_a_node_that_sends_slower_than_it_computes_says_busy_instead_of_queueing() -> None:
    from shoal.protocol.errors import Busy

    backlog = [0.0]
    admission = an_admission(Wire(lambda: backlog[0]))
    with admission.admit(DEMAND):
        backlog[0] = 3.0
        with pytest.raises(Busy) as caught, admission.admit(DEMAND):
            pass
    assert caught.value.retry_after_s == 3.0
