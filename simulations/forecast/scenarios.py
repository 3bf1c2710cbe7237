"""Swarms with a name: where their machines are, what these can do, how they are connected, how long they stay.

Machines' limits are round figures of their kind, not measurements: each says whose.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from shoal.client.trunk.linear_maker import TrunkFormat
from shoal.node.holdings.nearness import NUM_ASKED, layout_for
from shoal.node.holdings.placement import Around
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import WeightFormat
from shoal.simulations.forecast.churn import Lifetimes
from shoal.simulations.forecast.compute import Rates
from shoal.simulations.forecast.geography import MBIT_BYTES, Access, City, home, lan, path_ms
from shoal.simulations.forecast.peers import Link, Peer, TrunkHost
from shoal.simulations.forecast.routing import Generator

GB = 10**9
MAX_NODES = 10_000


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of machine."""

    name: str
    rates: Rates
    memory_bytes: int
    """For experts: 85 % of a computer room's, half of a volunteer's (what a node takes by default)."""
    share: float
    """Of a scenario's nodes."""


ROOM_DESKTOP = Kind("desktop", Rates(40e9, 0.3e12), round(0.85 * 16 * GB), 1.0)
"""Two channels of DDR4-3200 read at 80 %; eight AVX2 cores at half of their 1.2 TFLOP/s."""

HOME_MACHINES = (
    Kind("laptop", Rates(30e9, 0.15e12), 4 * GB, 0.4),
    Kind("desktop", Rates(40e9, 0.3e12), 8 * GB, 0.4),
    Kind("workstation", Rates(60e9, 0.5e12), 16 * GB, 0.2),
)

GPU_24_GB = TrunkHost(Link(0.0, 0.0), Rates(0.75 * 936e9, 20e12, layer_s=0.0001), 24 * GB)
"""A GeForce RTX 3090's memory rate by its data sheet at three quarters, its bf16 rate at a bit more than half; 0.1 ms
to start a layer's kernels. Links are the scenario's."""

GERMAN = (
    City("Berlin", "DE", "EU", 52.5, 13.4, 3.7), City("Hamburg", "DE", "EU", 53.6, 10.0, 1.8),
    City("Munich", "DE", "EU", 48.1, 11.6, 1.5), City("Cologne", "DE", "EU", 50.9, 7.0, 1.1),
    City("Frankfurt", "DE", "EU", 50.1, 8.7, 0.8), City("Leipzig", "DE", "EU", 51.3, 12.4, 0.6),
)  # fmt: skip
EUROPEAN = (
    *GERMAN, City("Paris", "FR", "EU", 48.9, 2.4, 6), City("Lyon", "FR", "EU", 45.8, 4.8, 2),
    City("Madrid", "ES", "EU", 40.4, -3.7, 5), City("Barcelona", "ES", "EU", 41.4, 2.2, 3),
    City("Rome", "IT", "EU", 41.9, 12.5, 4), City("Milan", "IT", "EU", 45.5, 9.2, 3),
    City("London", "GB", "EU", 51.5, -0.1, 7), City("Manchester", "GB", "EU", 53.5, -2.2, 2),
    City("Amsterdam", "NL", "EU", 52.4, 4.9, 2), City("Warsaw", "PL", "EU", 52.2, 21.0, 3),
    City("Lisbon", "PT", "EU", 38.7, -9.1, 2),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scenario:
    """A swarm with a name."""

    name: str
    about: str
    num_nodes: int
    kinds: tuple[Kind, ...]
    cities: tuple[City, ...]
    access: Callable[[City, Generator], Access]
    trunk_access: Access
    lifetimes: Lifetimes
    jitter: float
    stall_share: float
    between_sites_ms: float | None = None
    """Round trip between two cities; None: what their distance makes."""
    trunk: TrunkHost = GPU_24_GB
    weight_format: WeightFormat = WeightFormat.INT4_G128
    trunk_format: TrunkFormat = TrunkFormat.INT4_G128


def _room(city: City, rng: Generator) -> Access:
    return lan(0.3, 1000)


FIBRE = Access(1.0, Link(500 * MBIT_BYTES, 1000 * MBIT_BYTES))
"""Of a trunk host that others use: 1000 Mbit/s down, 500 up."""

LAB = Scenario(
    "lab", "50 desktops of 16 GB in one room, 0.3 ms and 1 Gbit/s apart, and a GPU of 24 GB for the trunk",
    50, (ROOM_DESKTOP,), (City("lab", "DE", "EU", 52.5, 13.4),), _room, lan(0.3, 1000), Lifetimes.FOREVER, 0.1, 0.0,
    between_sites_ms=0.0,
)  # fmt: skip

SCENARIOS = {
    each.name: each
    for each in (
        LAB,
        Scenario(
            "metro", "200 homes of one city", 200, HOME_MACHINES, GERMAN[:1], home, FIBRE, Lifetimes.STABLE, 0.2, 0.01
        ),
        Scenario(
            "country", "400 homes in six cities of Germany", 400, HOME_MACHINES, GERMAN, home, FIBRE,
            Lifetimes.STABLE, 0.2, 0.01,
        ),
        Scenario(
            "continent", "1000 homes in seventeen cities of Europe", 1000, HOME_MACHINES, EUROPEAN, home, FIBRE,
            Lifetimes.STABLE, 0.2, 0.01,
        ),
        replace(
            LAB, name="three-labs", about="three rooms of 20 desktops of 16 GB, 20 ms apart; no room holds the model",
            num_nodes=60, between_sites_ms=20.0,
            cities=tuple(City(name, "DE", "EU", 52.5, 13.4) for name in ("lab 1", "lab 2", "lab 3")),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Machines:
    """A scenario's machines, drawn from a seed: the first city is the trunk host's."""

    peers: list[Peer]
    trunk: TrunkHost
    homes: dict[PeerId, tuple[City, float]]
    """Where each is, and its last mile in ms."""
    scenario: Scenario
    seed: int

    def around(self, needed_s: float) -> list[Around]:
        """What each finds of its network: its city's name as its zone, and how long some others of it take to answer.
        needed_s: within how much time peers answer that are near."""
        rng, zones = np.random.default_rng((self.seed, 4)), dict[str, list[Peer]]()
        for peer in self.peers:
            zones.setdefault(self._zone(peer), []).append(peer)
        found = []
        for peer in self.peers:
            zone = self._zone(peer)
            others = rng.choice(len(zones[zone]), min(NUM_ASKED, len(zones[zone])), replace=False)
            asked = [zones[zone][int(place)] for place in others]
            answers = [self.between_s(peer, other) for other in asked if other is not peer]
            found.append(Around(layout_for(answers, needed_s), zone))
        return found

    def _zone(self, peer: Peer) -> str:
        """As owners name it; empty where all are in one."""
        return self.homes[peer.name][0].name if len(self.scenario.cities) > 1 else ""

    def between_s(self, first: Peer, second: Peer) -> float:
        """Round trip between two of them."""
        (here, here_ms), (there, there_ms) = self.homes[first.name], self.homes[second.name]
        return (_path_ms(self.scenario, here, there, self.seed) + here_ms + there_ms) / 1000


def scenario_named(name: str, num_nodes: int | None) -> Scenario:
    """A scenario, with another number of nodes if there is one.

    Raises:
        InvalidRequest: no such scenario, or more nodes than 10,000.
    """
    if name not in SCENARIOS:
        raise InvalidRequest(f"no scenario {name!r}; there are {', '.join(SCENARIOS)}")
    scenario = SCENARIOS[name]
    if num_nodes is not None and not 1 <= num_nodes <= MAX_NODES:
        raise InvalidRequest(f"{num_nodes} nodes, expected 1..{MAX_NODES}")
    return scenario if num_nodes is None else replace(scenario, num_nodes=num_nodes)


def draw_machines(scenario: Scenario, seed: int) -> Machines:
    """The machines of a scenario."""
    rng = np.random.default_rng(seed)
    weights = np.array([city.weight for city in scenario.cities])
    shares = np.array([kind.share for kind in scenario.kinds])
    places = rng.choice(len(weights), scenario.num_nodes, p=weights / weights.sum())
    if scenario.between_sites_ms is not None:  # rooms are of one size
        places = np.arange(scenario.num_nodes) % len(weights)
    kinds = rng.choice(len(shares), scenario.num_nodes, p=shares / shares.sum())
    peers, homes, centre = list[Peer](), dict[PeerId, tuple[City, float]](), scenario.cities[0]
    for number, (place, kind) in enumerate(zip(places, kinds, strict=True)):
        city, machine = scenario.cities[int(place)], scenario.kinds[int(kind)]
        access, name = scenario.access(city, rng), PeerId(f"{machine.name}-{number:05}")
        rtt_ms = _path_ms(scenario, centre, city, seed) + scenario.trunk_access.last_mile_ms + access.last_mile_ms
        peers.append(Peer(name, rtt_ms / 1000, access.link, machine.rates, machine.memory_bytes))
        homes[name] = (city, access.last_mile_ms)
    trunk = replace(scenario.trunk, link=scenario.trunk_access.link)
    return Machines(peers, trunk, homes, scenario, seed)


def _path_ms(scenario: Scenario, first: City, second: City, seed: int) -> float:
    """Between two cities, or inside one. A room's machines have all of their round trip in their last miles."""
    if scenario.between_sites_ms is None:
        return path_ms(first, second, seed)
    return 0.0 if first.name == second.name else scenario.between_sites_ms
