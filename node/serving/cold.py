"""Experts on disk, the latest few in memory: all that an anchor has, or what a node has beside those in its memory.

The last resort of a swarm. A request's cold experts are read on a thread of their own before it goes to the kernel, so
that others do not wait for a disk; what has gone from memory meanwhile is read on the kernel's thread. A call for more
of them than fit runs in parts, whose sums are added as a client adds those of several holders (ADR 0004). What reading
took is told to the client as computing, which is how it learns how slow this disk is.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil

import torch

from shoal.experts.backend import ExpertBackend, PackedExpert
from shoal.node.holdings.assignment import Holding
from shoal.node.serving.batch_rows import Call
from shoal.protocol.errors import CheckpointError, IntegrityError, Malformed, ModelNotFound, NotHeld, PeerFailed
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.limits import MAX_DURATION_MS
from shoal.protocol.messages import Rounding

LoadExpert = Callable[[LayerId, ExpertId], PackedExpert]
"""Reads, verifies and packs one expert. Blocking. Raises CheckpointError, IntegrityError, ModelNotFound, OSError."""

SMOOTHING = 0.2
"""Weight of the newest read: the page cache may have flattered the first ones."""


class LatestExperts:
    """The experts that were asked for last. Two threads may use it: the disk's and the kernel's.

    Limits: `capacity` experts, those that are being read included, but one for a moment if each of the two reads one;
    the one that was not asked for the longest goes first.
    """

    def __init__(self, load: LoadExpert, capacity: int, clock: Callable[[], float]) -> None:
        """capacity: experts that fit in memory, at least 1. clock: seconds, for durations."""
        self._load = load
        self._clock = clock
        self.capacity = capacity
        self.read_s = 0.0
        """What reading one takes, of late; 0: none was read yet."""
        self._latest: OrderedDict[tuple[LayerId, ExpertId], PackedExpert] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._latest)

    def __contains__(self, place: tuple[LayerId, ExpertId]) -> bool:
        return place in self._latest

    def get(self, layer: LayerId, expert: ExpertId) -> PackedExpert:
        """From memory, or from disk. Blocking.

        Raises:
            PeerFailed: its weights can not be read, or are not what the manifest says.
        """
        with self._lock:
            packed = self._latest.get((layer, expert))
            if packed is not None:
                self._latest.move_to_end((layer, expert))
                return packed
            self._make_room()
        started = self._clock()
        try:
            packed = self._load(layer, expert)
        except (CheckpointError, IntegrityError, ModelNotFound, OSError) as error:
            raise PeerFailed(f"expert {expert} of layer {layer} can not be read from disk") from error
        with self._lock:
            self._make_room()
            self._latest[layer, expert] = packed
            took_s = self._clock() - started
            self.read_s = took_s if self.read_s == 0 else self.read_s + SMOOTHING * (took_s - self.read_s)
        return packed

    def _make_room(self) -> None:
        """Before an expert is read, so that it fits; and after, if the other thread has put one there meanwhile."""
        while len(self._latest) >= self.capacity:
            self._latest.popitem(last=False)


class ColdExperts:
    """What a node reads from disk when it is asked for it."""

    def __init__(self, offered: Holding, latest: LatestExperts) -> None:
        """offered: all that is on disk for that, in memory or not; it may grow."""
        self._offered = {layer: frozenset(experts) for layer, experts in offered.items() if experts}
        self.latest = latest

    def has(self, layer: LayerId, expert: ExpertId) -> bool:
        """Whether it is on disk to be read."""
        return expert in self._offered.get(layer, frozenset())

    def offer(self, layer: LayerId, expert: ExpertId) -> None:
        """One more has come to the disk."""
        self._offered[layer] = self._offered.get(layer, frozenset()) | {expert}

    def beside(self, resident: Mapping[LayerId, Sequence[ExpertId]]) -> Holding:
        """What is on disk and not in memory: an expert is in exactly one of the two, at every moment."""
        left = {layer: experts - set(resident.get(layer, ())) for layer, experts in self._offered.items()}
        return {layer: tuple(sorted(experts)) for layer, experts in sorted(left.items()) if experts}

    def sample(self) -> dict[LayerId, dict[ExpertId, PackedExpert]]:
        """Read one expert, for the check before anything is announced and to know how long that takes. Blocking.

        Returns it, by layer and id; nothing where nothing is on disk yet.

        Raises:
            PeerFailed: as `LatestExperts.get`.
        """
        if not self._offered:
            return {}
        layer = min(self._offered)
        expert = min(self._offered[layer])
        return {layer: {expert: self.latest.get(layer, expert)}}

    @property
    def read_ms(self) -> int:
        """What reading one takes, for the record: whole milliseconds, at least one; 0: none was read yet."""
        return min(ceil(1000 * self.latest.read_s), MAX_DURATION_MS)

    def read(self, layer: LayerId, experts: Sequence[ExpertId]) -> None:
        """Bring what a request will need into memory, as much as fits. Blocking.

        Raises:
            PeerFailed: as `LatestExperts.get`.
        """
        for expert in experts[: self.latest.capacity]:
            self.latest.get(layer, expert)


def compute(
    backend: ExpertBackend, resident: Mapping[ExpertId, PackedExpert], cold: ColdExperts, call: Call
) -> torch.Tensor:
    """The weighted sums f32[T, H] of a call, no more experts from disk in memory than fit. resident: of its layer.

    Raises:
        Malformed: no experts. NotHeld: it waited while one was let go of. Else as `LatestExperts.get` and
        `ExpertBackend.run`.
    """
    layer, rows = LayerId(call.layer), call.rows
    ids = [ExpertId(expert) for expert in call.experts]
    total: torch.Tensor | None = None
    for first, last in _parts([expert not in resident for expert in ids], cold.latest.capacity):
        experts = [_find(resident, cold, layer, expert) for expert in ids[first:last]]
        begin, end = rows.offsets[first], rows.offsets[last]
        part = backend.run(
            experts, rows.x, rows.row_idx[begin:end], [at - begin for at in rows.offsets[first : last + 1]],
            rows.topk_weights[begin:end], Rounding(call.rounding),
        )  # fmt: skip
        total = part if total is None else total + part
    if total is None:
        raise Malformed("a call without experts")
    return total


def _find(
    resident: Mapping[ExpertId, PackedExpert], cold: ColdExperts, layer: LayerId, expert: ExpertId
) -> PackedExpert:
    packed = resident.get(expert)
    if packed is not None:
        return packed
    if not cold.has(layer, expert):
        raise NotHeld(f"expert {expert} of layer {layer} is not held here any more")
    return cold.latest.get(layer, expert)


def _parts(is_cold: Sequence[bool], capacity: int) -> Iterator[tuple[int, int]]:
    """From where to where each part of a call goes: at most `capacity` cold experts in each."""
    first = num_cold = 0
    for place, each in enumerate(is_cold):
        if each and num_cold == capacity:
            yield first, place
            first, num_cold = place, 0
        num_cold += each
    if first < len(is_cold):
        yield first, len(is_cold)
