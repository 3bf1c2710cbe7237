"""A revoked member is refused by every node that hears of it, its connections are cut, and no old list undoes that."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shoal.node.revocation_watch import RevocationWatch
from shoal.protocol.errors import ChannelClosed, ConnectFailed, NetworkError
from shoal.protocol.limits import RECORD_TTL_S
from shoal.protocol.membership import Founder, MemberGate, Membership, never_revoked, token_id
from shoal.protocol.net.channel import Channel
from shoal.protocol.net.direct import DirectConnector, DirectListener, listen_direct
from shoal.protocol.net.directory import Posted
from shoal.protocol.net.memory_directory import MemoryBoard
from shoal.protocol.revocation_list import RevocationList, sign_revocations
from shoal.protocol.revocations import Revocations
from tests.protocol.networks import CLIENT, OTHER, SERVER, SOON_S, body_of, dispatch, echo, run

SWARM = Founder(b"F" * 32)
ANA, BEN = SWARM.member(b"1" * 16), SWARM.member(b"2" * 16)
ANA_ID, BEN_ID = token_id(ANA.token_key), token_id(BEN.token_key)
FIRST = sign_revocations([ANA_ID], SWARM.identity)
SECOND = sign_revocations([ANA_ID, "f" * 16], SWARM.identity)


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class CountingBoard:
    """A board that says how often something was posted."""

    board: MemoryBoard
    posts: list[int] = field(default_factory=list)

    async def post(self, revocations: RevocationList) -> None:
        self.posts.append(revocations.number)
        await self.board.post(revocations)

    async def posted(self) -> list[Posted]:
        return await self.board.posted()


class DeadBoard:
    async def post(self, revocations: RevocationList) -> None:
        raise NetworkError("nobody is there")

    async def posted(self) -> list[Posted]:
        raise NetworkError("nobody is there")


def watch(board: object, path: Path | None = None, clock: Clock | None = None) -> RevocationWatch:
    return RevocationWatch(ANA.founder_key, board, never_revoked, path, clock or Clock())  # type: ignore[arg-type]


def test_what_the_founder_writes_reaches_the_other_members_through_the_directory(tmp_path: Path) -> None:
    clock = Clock()
    board = MemoryBoard(clock)
    founders = watch(board, tmp_path / "founder" / "list", clock)
    members = watch(board, tmp_path / "member" / "list", clock)
    for each in (founders, members):
        asyncio.run(each.look())
    assert not members(ANA_ID)
    (tmp_path / "founder").mkdir()
    (tmp_path / "founder" / "list").write_bytes(FIRST.encoded)
    for each in (founders, members):
        asyncio.run(each.look())
    assert members(ANA_ID)
    assert not members(BEN_ID)
    kept = tmp_path / "member" / "list"
    assert kept.read_bytes() == FIRST.encoded
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_restarted_node_is_not_talked_into_an_earlier_list(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "list"
    board = MemoryBoard(clock)
    path.write_bytes(SECOND.encoded)
    asyncio.run(board.post(FIRST))  # whoever would have "f" * 16 back
    restarted = watch(board, path, clock)
    asyncio.run(restarted.look())
    assert restarted.latest == SECOND
    assert path.read_bytes() == SECOND.encoded
    path.write_bytes(FIRST.encoded)  # nor by the file, while it runs
    restarted.read_file()
    assert restarted("f" * 16)
    assert SECOND.encoded in {each.encoded for each in asyncio.run(board.posted())}


def test_a_list_outlives_its_founder_and_is_not_hung_up_by_everybody_all_the_time() -> None:
    clock = Clock()
    board = CountingBoard(MemoryBoard(clock))
    asyncio.run(board.post(FIRST))
    members = [watch(board, None, clock) for _ in range(10)]
    for _ in range(20):
        for each in members:
            asyncio.run(each.look())
            assert each(ANA_ID)
        clock.now_s += RECORD_TTL_S / 3
    assert 10 <= len(board.posts) <= 20  # one of ten members, every 30 or 60 s


@pytest.mark.parametrize("noise", [b"", b"noise", sign_revocations([ANA_ID], Founder(b"G" * 32).identity).encoded])
def test_neither_noise_nor_a_directory_that_is_away_changes_what_is_known(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / "list"
    path.write_bytes(FIRST.encoded)
    known = watch(DeadBoard(), path)
    asyncio.run(known.look())
    path.write_bytes(noise)
    asyncio.run(known.look())
    assert known(ANA_ID)
    assert not known(BEN_ID)


def test_this_machines_own_list_holds_too(tmp_path: Path) -> None:
    own = tmp_path / "revoked"
    local = RevocationWatch(ANA.founder_key, DeadBoard(), Revocations(own), None, Clock())
    assert not local(BEN_ID)
    own.write_text(f"{BEN_ID}\n")
    assert local(BEN_ID)


@asynccontextmanager
async def served(gate: MemberGate) -> AsyncIterator[DirectListener]:
    listener = await listen_direct(SERVER, "127.0.0.1", 0, echo, os.urandom, gate=gate)
    try:
        yield listener
    finally:
        await listener.aclose()


def test_connections_of_a_revoked_member_are_cut_and_those_of_others_go_on(tmp_path: Path) -> None:
    async def test() -> None:
        known = watch(MemoryBoard(Clock()), tmp_path / "list")
        connectors = {each: DirectConnector(who, os.urandom, each) for who, each in ((CLIENT, ANA), (OTHER, BEN))}

        async def connect(member: Membership) -> Channel:
            return await connectors[member].connect(SERVER.peer, listener.addresses, SOON_S)

        async with served(MemberGate(ANA.founder_key, known)) as listener:
            anas, bens = await connect(ANA), await connect(BEN)
            await anas.request(dispatch(), body_of(dispatch()))
            known.expel([listener])
            assert not anas.is_closed
            (tmp_path / "list").write_bytes(FIRST.encoded)
            known.read_file()
            assert listener.expel(known) == 1
            with pytest.raises(ChannelClosed):
                await anas.ping(SOON_S)
            assert anas.is_closed
            with pytest.raises(ConnectFailed):
                await connect(ANA)
            assert (await bens.request(dispatch(), body_of(dispatch()))).body
            assert listener.expel(known) == 0
            for connector in connectors.values():
                await connector.aclose()

    run(test())


def test_the_watch_runs_by_itself_from_the_file_to_the_cut_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.node.revocation_watch.FILE_PAUSE_S", 0.01)

    async def test() -> None:
        board = MemoryBoard(Clock())
        known = watch(board, tmp_path / "list")
        connector = DirectConnector(CLIENT, os.urandom, ANA)
        async with served(MemberGate(ANA.founder_key, known)) as listener:
            channel = await connector.connect(SERVER.peer, listener.addresses, SOON_S)
            running = asyncio.create_task(known.run([listener]))
            (tmp_path / "list").write_bytes(FIRST.encoded)
            async with asyncio.timeout(60):
                while not (channel.is_closed and await board.posted()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            running.cancel()
            await asyncio.wait({running})
            await connector.aclose()

    run(test())
