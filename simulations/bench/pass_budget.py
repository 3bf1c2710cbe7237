"""Where the time of a client's passes goes: trunk, experts, head, sampling; of the experts the wire and the holders.

An observer of one client's events. Knows sums; whoever measures takes two of them and their difference.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal.protocol.events import DispatchSent, Event, ExpertsTimed, LayerTimed, PassTaken


@dataclass(frozen=True, slots=True)
class Budget:
    """Sums over some passes, `ms` by what they were for."""

    num_passes: int
    num_rows: int
    num_dispatches: int
    num_waves: int
    ms: Mapping[str, float]

    def since(self, before: "Budget") -> "Budget":
        """What came after an earlier one."""
        return Budget(
            self.num_passes - before.num_passes,
            self.num_rows - before.num_rows,
            self.num_dispatches - before.num_dispatches,
            self.num_waves - before.num_waves,
            {name: ms - before.ms.get(name, 0.0) for name, ms in self.ms.items()},
        )

    def per_pass(self) -> dict[str, float]:
        """Milliseconds of a pass. Waves that overlap each have their own `trunk` and `experts`, so that these may be
        more than the pass took."""
        return {name: ms / max(1, self.num_passes) for name, ms in self.ms.items()}

    @property
    def waves_per_pass(self) -> float:
        """1 where all rows go together."""
        return self.num_waves / max(1, self.num_passes)


@dataclass(slots=True)
class PassBudget:
    """Adds up one client's events."""

    num_passes: int = 0
    num_rows: int = 0
    num_dispatches: int = 0
    num_waves: int = 0
    _ms: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _first_layer: int | None = None
    """Which every wave tells of once."""

    def __call__(self, event: Event) -> None:
        match event:
            case DispatchSent():
                self.num_dispatches += 1
            case LayerTimed():
                self._add(trunk=event.attention_s + event.route_s, experts=event.experts_s)
                self._first_layer = event.layer if self._first_layer is None else self._first_layer
                self.num_waves += event.layer == self._first_layer
            case ExpertsTimed():
                self._add(
                    wire=event.wire_s,
                    holders_queue=event.queue_s,
                    holders_compute=event.compute_s,
                    straggling=event.straggling_s,
                    packing=event.local_s,
                )
            case PassTaken():
                self.num_passes += 1
                self.num_rows += event.num_decoding + event.num_prefilled
                self._add(total=event.total_s, head=event.head_s, sampling=event.sampling_s)
            case _:
                pass

    def now(self) -> Budget:
        """Everything so far."""
        return Budget(self.num_passes, self.num_rows, self.num_dispatches, self.num_waves, dict(self._ms))

    def _add(self, **seconds: float) -> None:
        for name, value in seconds.items():
            self._ms[name] += 1000 * value
