"""Scenarios of filling: who is there at the beginning, what goes wrong, and where the bytes came from in the end.

Lines are those of homes in 22 countries. By default a machine's share is in proportion to its downlink.
"""

import asyncio
import random
from dataclasses import dataclass, replace

from shoal.experts.pieces.pieces import ExpertPiece
from shoal.node.holdings.assignment import Holding
from shoal.simulations.forecast.peers import Link
from shoal.simulations.seeding.limits import FillLimits, fill_limits
from shoal.simulations.seeding.lines import homes
from shoal.simulations.seeding.machines import Machine, MachineSettings, Model, World
from shoal.simulations.seeding.shares import share_out
from shoal.simulations.seeding.timeline import Moment, timeline
from shoal.simulations.virtual.loop import run_virtual

EXPERT_BYTES = 44_000_000
"""Of DeepSeek-V3, in its published format."""

MODEL = Model(num_layers=4, num_experts=256, piece_bytes=2_200_000)
"""A twentieth of the true size at a twentieth of the true rates: the same seconds, chunks as in reality, less to hash.
Four layers of DeepSeek-V3 for fifty machines: 61 experts each, 2.7 GB of true weights (8 GB are 180)."""

FEW_EXPERTS = 16
"""Of a layer, where a scenario is about who is asked and not about time."""

HOLDER_LINE = Link(up=5e6, down=12.5e6)
"""Of those who hold something at the beginning: 40 Mbit/s up, 100 down. Behind a slow home's line its scenarios would
measure nothing else."""

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
    is_killed: leaves when half of the pieces have come; num_liars: of those that hold something at the beginning;
    is_even: all shares are alike, whatever the lines; is_small: with one layer of `FEW_EXPERTS`."""

    title: str
    has_hub: bool = True
    has_peers: bool = True
    is_held: bool = False
    is_killed: bool = False
    num_liars: int = 0
    is_even: bool = False
    is_small: bool = False


SCENARIOS = {
    "newcomers": Scenario("nobody has anything but the hub"),
    "even": Scenario("the same, but all shares are alike", is_even=True),
    "alone": Scenario("nobody gives to others", has_peers=False),
    "one holder": Scenario("one machine has all, and there is no hub", has_hub=False, is_held=True, is_small=True),
    "killed": Scenario(
        "the same with a hub; the holder is killed halfway", is_held=True, is_killed=True, is_small=True
    ),
    "liars": Scenario("one true holder, three that give wrong bytes, a hub", is_held=True, num_liars=3, is_small=True),
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
    limits: FillLimits
    timeline: tuple[Moment, ...]
    num_dropped: int
    """Judgements of one machine on another that lied to it."""
    is_whole: bool
    """Every machine has what it is to hold, and every byte of it is right."""


def simulate(scenario: Scenario, settings: SeedingSettings) -> Outcome:
    """Run one scenario under a virtual clock of its own."""
    entropy = random.Random(settings.seed)
    return run_virtual(lambda: _run(scenario, settings, entropy), random.Random(settings.seed + 1), LIMIT_S)


async def _run(scenario: Scenario, settings: SeedingSettings, entropy: random.Random) -> Outcome:
    model = replace(settings.model, num_layers=1, num_experts=FEW_EXPERTS) if scenario.is_small else settings.model
    world = World(model, entropy)
    links = homes(settings.num_nodes, settings.seed)
    weights = [1.0 if scenario.is_even else link.down for link in links]
    holdings = share_out(list(world.pieces), settings.replicas, weights, entropy)

    def machine(holding: Holding, link: Link, is_lying: bool = False) -> Machine:
        scale = model.piece_bytes / EXPERT_BYTES
        lines = MachineSettings(
            holding, link.up * scale, link.down * scale, scenario.has_peers, scenario.has_hub, is_lying
        )
        return Machine(world, lines)

    everything = world.everything
    holders = [machine(everything, HOLDER_LINE)] if scenario.is_held else []
    holders += [machine(everything, HOLDER_LINE, is_lying=True) for _ in range(scenario.num_liars)]
    newcomers = [machine(*each) for each in zip(holdings, links, strict=True)]
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
    limits = fill_limits(
        [len(_pieces(each)) * world.model.piece_bytes for each in newcomers],
        [_link(each) for each in newcomers],
        [_link(each) for each in all_of_them if not each.settings.is_lying],
        from_peers,
    )
    judged = [each.peers.standing(other.identity.peer) for each in newcomers if each.peers for other in all_of_them]
    right = [each.store.read(piece.digest) is not None for each in newcomers for piece in _pieces(each)]
    return Outcome(
        title=scenario.title,
        hub_copies=world.hub_bytes / copy,
        peer_copies=from_peers / copy,
        given_in_vain_copies=(given - from_peers) / copy,
        fill_s=times[-1],
        median_fill_s=times[len(times) // 2],
        limits=limits,
        timeline=tuple(timeline([each.up for each in newcomers], [each.down for each in newcomers], times)),
        num_dropped=sum(standing.is_dropped for standing in judged),
        is_whole=all(right),
    )


def _link(machine: Machine) -> Link:
    return Link(machine.settings.up_bytes_per_s, machine.settings.down_bytes_per_s)
