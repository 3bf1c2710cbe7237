"""Scenarios of filling: who is there at the beginning, what goes wrong, and where the bytes came from in the end."""

import asyncio
import random
from dataclasses import dataclass

from shoal.experts.pieces.pieces import ExpertPiece
from shoal.node.holdings.assignment import Holding
from shoal.protocol.ids import ExpertId, LayerId
from shoal.simulations.seeding.machines import Machine, MachineSettings, Model, World
from shoal.simulations.virtual.loop import run_virtual

EXPERT_BYTES = 44_000_000
"""Of DeepSeek-V3, in its published format."""

UPLINKS_MBIT = (5.0, 10.0, 20.0, 40.0, 100.0)
DOWNLINK_MBIT = 100.0
"""Lines as people have them at home; each machine draws one of the uplinks."""

MODEL = Model(num_layers=2, num_experts=32, piece_bytes=2_200_000)
"""A twentieth of the true size at a twentieth of the true rates: the same hours, chunks as in reality, less to hash."""

LIMIT_S = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class SeedingSettings:
    """How much is simulated."""

    num_nodes: int = 50
    replicas: int = 3
    model: Model = MODEL
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Scenario:
    """has_hub: whether newcomers have another source; is_held: whether one machine has everything at the beginning, and
    leaves when half of the pieces have come; num_liars: of those that hold something at the beginning."""

    title: str
    has_hub: bool = True
    has_peers: bool = True
    is_held: bool = False
    is_killed: bool = False
    num_liars: int = 0


SCENARIOS = {
    "newcomers": Scenario("nobody has anything but the hub"),
    "alone": Scenario("the same, but nobody gives to others", has_peers=False),
    "one holder": Scenario("one machine has all, and there is no hub", has_hub=False, is_held=True),
    "killed": Scenario("the same with a hub; the holder is killed halfway", is_held=True, is_killed=True),
    "liars": Scenario("one true holder, three that give wrong bytes, a hub", is_held=True, num_liars=3),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. Bytes in copies of the model; seconds are virtual, of pieces of DeepSeek-V3's size."""

    title: str
    hub_copies: float
    peer_copies: float
    given_in_vain_copies: float
    """Given by peers and not kept: wrong, or begun and ended elsewhere."""
    fill_s: float
    """Until the last machine had everything."""
    median_fill_s: float
    ideal_s: float
    """What the bytes that peers gave take if every uplink is busy all the time; and no machine faster than its line."""
    num_dropped: int
    """Judgements of one machine on another that lied to it."""
    is_whole: bool
    """Every machine has what it is to hold, and every byte of it is right."""


def simulate(scenario: Scenario, settings: SeedingSettings) -> Outcome:
    """Run one scenario under a virtual clock of its own."""
    entropy = random.Random(settings.seed)
    return run_virtual(lambda: _run(scenario, settings, entropy), random.Random(settings.seed + 1), LIMIT_S)


def share_out(settings: SeedingSettings) -> list[Holding]:
    """So many replicas of each expert, dealt out in turn."""
    model, holdings = settings.model, [dict[LayerId, tuple[ExpertId, ...]]() for _ in range(settings.num_nodes)]
    places = [(LayerId(layer), ExpertId(e)) for layer in range(model.num_layers) for e in range(model.num_experts)]
    for number, (layer, expert) in enumerate(places * settings.replicas):
        round_number = number // len(places)
        holding = holdings[(number + 7 * round_number) % settings.num_nodes]
        if expert not in holding.get(layer, ()):
            holding[layer] = tuple(sorted((*holding.get(layer, ()), expert)))
    return holdings


async def _run(scenario: Scenario, settings: SeedingSettings, entropy: random.Random) -> Outcome:
    world = World(settings.model, entropy)
    scale = settings.model.piece_bytes / EXPERT_BYTES
    everything = {
        LayerId(layer): tuple(map(ExpertId, range(settings.model.num_experts)))
        for layer in range(settings.model.num_layers)
    }

    def machine(holding: Holding, is_lying: bool = False) -> Machine:
        up = entropy.choice(UPLINKS_MBIT) * 125_000 * scale
        lines = MachineSettings(
            holding, up, DOWNLINK_MBIT * 125_000 * scale, scenario.has_peers, scenario.has_hub, is_lying
        )
        return Machine(world, lines)

    holders = [machine(everything)] if scenario.is_held else []
    holders += [machine(everything, is_lying=True) for _ in range(scenario.num_liars)]
    newcomers = [machine(holding) for holding in share_out(settings)]
    for each in holders:
        await each.start(is_full=True)
    for each in newcomers:
        await each.start()
    async with asyncio.TaskGroup() as group:
        for each in newcomers:
            group.create_task(each.fill())
        if scenario.is_killed:
            group.create_task(_kill_halfway(holders[0], newcomers))
    outcome = _outcome(scenario, world, holders, newcomers)
    for each in (*holders, *newcomers):
        await each.stop()
    return outcome


async def _kill_halfway(holder: Machine, newcomers: list[Machine]) -> None:
    wanted = sum(len(_pieces(each)) for each in newcomers)
    is_half = False
    while not is_half:
        await asyncio.sleep(1.0)
        is_half = sum(len(each.store.pieces()) for each in newcomers) >= wanted / 2
    await holder.stop()


def _pieces(machine: Machine) -> list[ExpertPiece]:
    holding = machine.settings.holding
    return [machine.world.pieces[layer, expert] for layer, experts in holding.items() for expert in experts]


def _outcome(scenario: Scenario, world: World, holders: list[Machine], newcomers: list[Machine]) -> Outcome:
    all_of_them = [*holders, *newcomers]
    given = sum(each.metrics.bytes_given for each in all_of_them)
    copy, wanted = world.copy_bytes, sum(len(_pieces(each)) for each in newcomers) * world.model.piece_bytes
    from_peers = wanted - world.hub_bytes
    times = sorted(each.filled_at_s or 0.0 for each in newcomers)
    uplinks = sum(each.settings.up_bytes_per_s for each in all_of_them if not each.settings.is_lying)
    own = max(len(_pieces(each)) * world.model.piece_bytes / each.settings.down_bytes_per_s for each in newcomers)
    judged = [each.peers.standing(other.identity.peer) for each in newcomers if each.peers for other in all_of_them]
    right = [each.store.read(piece.digest) is not None for each in newcomers for piece in _pieces(each)]
    return Outcome(
        title=scenario.title,
        hub_copies=world.hub_bytes / copy,
        peer_copies=from_peers / copy,
        given_in_vain_copies=(given - from_peers) / copy,
        fill_s=times[-1],
        median_fill_s=times[len(times) // 2],
        ideal_s=max(from_peers / uplinks, own),
        num_dropped=sum(standing.is_dropped for standing in judged),
        is_whole=all(right),
    )
