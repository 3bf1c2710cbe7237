"""What `make bench-wan` measures: networks, numbers of streams, formats, and for how long; and its command line."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from shoal.client.engine.engine_settings import MAX_RUNNING
from shoal.client.settings import ACTIVATIONS
from shoal.protocol.errors import InvalidRequest
from shoal.simulations.wan.link import Link

PIVOT_RTT_MS = 20.0
"""Where losses and rates are looked at in the default table: the round trip of the targets."""

OUT = Path("build/bench-wan")


@dataclass(frozen=True, slots=True)
class Cell:
    """One network and a number of answers at a time."""

    rtt_ms: float
    loss: float
    mbit_per_s: float
    streams: int

    @property
    def link(self) -> Link:
        return Link(self.rtt_ms, self.loss, self.mbit_per_s * 1e6 / 8)


@dataclass(frozen=True, slots=True)
class SwarmShape:
    """Nodes that share the experts in equal parts, `replicas` times."""

    nodes: int
    replicas: int

    def __str__(self) -> str:
        return f"{self.nodes}x{self.replicas}"


@dataclass(frozen=True, slots=True)
class WanSettings:
    """What is measured: cells, `rounds` times in turn, as long as there is time."""

    rtts_ms: Sequence[float] = (0, 1, 5, 20, 50)
    streams: Sequence[int] = (1, 8, 32)
    losses: Sequence[float] = (0, 0.01)
    mbits_per_s: Sequence[float] = (1000, 100, 20)
    is_full: bool = False
    """Every combination. Else every round trip on the first network (no loss, the fastest link), and the others at 20
    ms: 30 cells instead of 90."""
    activations: Sequence[str] = ("exact",)
    congestion_control: str = "reno"
    tokens: int = 24
    """Of every answer beside others."""
    tokens_alone: int = 48
    """Of a single answer, which drafts shorten to some ten runs."""
    rounds: int = 3
    swarms: Sequence[SwarmShape] = (SwarmShape(4, 2),)
    minutes: float = 12.0
    """After which no cell begins or goes on; what was not measured says so. Nodes start and end besides: a minute."""
    cell_s: float = 60.0
    """What one cell may take in a round: on a link that loses packets a TCP connection may stand still for long."""

    def cells(self) -> Iterator[Cell]:
        """Rates and losses first, so that a link changes as seldom as may be."""
        base = (self.mbits_per_s[0], self.losses[0])
        for mbit, loss, rtt_ms, streams in product(self.mbits_per_s, self.losses, self.rtts_ms, self.streams):
            if self.is_full or (mbit, loss) == base or rtt_ms == PIVOT_RTT_MS:
                yield Cell(rtt_ms, loss, mbit, streams)

    def check(self) -> None:
        """
        Raises:
            InvalidRequest: nothing to measure, or formats that there are not.
        """
        lists = (self.rtts_ms, self.streams, self.losses, self.mbits_per_s, self.activations, self.swarms)
        if not all(lists) or not 1 <= min(self.streams) <= max(self.streams) <= MAX_RUNNING:
            raise InvalidRequest(f"expected something of every kind, and 1 to {MAX_RUNNING} streams")
        if self.rounds < 1 or min(self.tokens, self.tokens_alone) < 3:
            raise InvalidRequest("expected a round or more, three tokens or more")
        if not (self.minutes > 0 and self.cell_s > 0):
            raise InvalidRequest("expected time to measure in")
        if unknown := set(self.activations) - set(ACTIVATIONS):
            raise InvalidRequest(f"activations {', '.join(sorted(unknown))}; known are {', '.join(ACTIVATIONS)}")


QUICK = WanSettings(
    rtts_ms=(0, 20), streams=(1, 8), mbits_per_s=(100,), is_full=True, tokens=12, tokens_alone=24, rounds=1, minutes=3
)
"""A few minutes."""

FULL_MINUTES = 60.0


@dataclass(frozen=True, slots=True)
class Said:
    """A command line."""

    settings: WanSettings
    as_json: bool = False
    """Print JSON instead of the table; both are written to `out`."""
    out: Path = OUT


def parse(arguments: Sequence[str]) -> Said:
    """What the command line says. Who names networks gets every combination of them."""
    parser = argparse.ArgumentParser(prog="bench-wan", description="Decoding over networks of namespaces. Needs root.")
    parser.add_argument("--quick", action="store_true", help="eight cells, a minute")
    parser.add_argument("--full", action="store_true", help="every combination: 90 cells, up to an hour")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of table.md and result.json")
    parser.add_argument("--minutes", type=float, help="in all; what has no time says so")
    parser.add_argument("--rtt", type=_numbers, help="milliseconds, e.g. 0,5,20")
    parser.add_argument("--streams", type=_numbers, help="answers at a time, e.g. 1,8,32")
    parser.add_argument("--loss", type=_numbers, help="percent, e.g. 0,1")
    parser.add_argument("--mbit", type=_numbers, help="of every machine, each way, e.g. 1000,100,20")
    parser.add_argument("--activations", type=lambda words: tuple(words.split(",")), help="e.g. exact,int8,auto")
    parser.add_argument("--swarm", type=_shapes, help="nodes x holders of every expert, e.g. 2x1,4x2,4x1; default 4x2")
    parser.add_argument("--congestion", help="TCP's congestion control in the namespaces; default reno")
    parser.add_argument("--tokens", type=int, help="of every answer")
    parser.add_argument("--rounds", type=int)
    said = parser.parse_args(list(arguments))
    base = QUICK if said.quick else WanSettings()
    settings = WanSettings(
        rtts_ms=said.rtt or base.rtts_ms,
        streams=tuple(int(each) for each in said.streams or base.streams),
        losses=tuple(each / 100 for each in said.loss) if said.loss else base.losses,
        mbits_per_s=said.mbit or base.mbits_per_s,
        is_full=base.is_full or said.full or any((said.rtt, said.loss, said.mbit)),
        activations=said.activations or base.activations,
        congestion_control=said.congestion or base.congestion_control,
        tokens=said.tokens or base.tokens,
        tokens_alone=said.tokens or base.tokens_alone,
        rounds=said.rounds or base.rounds,
        swarms=said.swarm or base.swarms,
        minutes=said.minutes or (FULL_MINUTES if said.full else base.minutes),
    )
    return Said(settings, said.json, said.out)


def _numbers(words: str) -> tuple[float, ...]:
    """`0,5,20`."""
    return tuple(float(word) for word in words.split(","))


def _shapes(words: str) -> tuple[SwarmShape, ...]:
    """`2x1,4x2`."""
    return tuple(SwarmShape(*(int(number) for number in word.split("x"))) for word in words.split(","))
