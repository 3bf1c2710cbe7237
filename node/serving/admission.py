"""Admission: whether a request is let in at all (R7). Over a limit the answer is BUSY with a time, not a longer queue.

One request has an exactly known cost, rows x 3·H·I multiply-accumulates and the bytes of its tensors, so what is let in
is counted in the seconds it will take at the measured speed and in the memory it holds. Knows no tensors.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from shoal.node.serving.shares import Shares
from shoal.protocol.errors import Busy, Draining
from shoal.protocol.ids import PeerId

INITIAL_MACS_PER_S = 5e9
"""Assumed speed before the first call was timed: a slow laptop's core. The first measurement replaces it."""

UNMEASURED_RETRY_S = 0.1
"""The longest wait that is asked for before the first call was timed: a guess may be wrong by a hundred times."""

SMOOTHING = 0.2
"""Weight of the newest call in the measured speed: follows a change within about ten calls."""

MAX_WIRE_BACKLOG_S = 1.0
"""Answers that wait longer for the owner's limit on bytes come after their deadline: replicas are the better answer."""

MIN_RETRY_AFTER_S = 0.01
"""The shortest wait that is asked for: below it a client's round trip decides."""

OVERHEAD_BYTES = 16 * 1024
"""What a request holds beside its tensors: task, timer, header. It bounds their number too."""


def no_backlog() -> float:
    """Of a wire without limits."""
    return 0.0


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What may be let in and unfinished, all clients together."""

    max_queue_s: float = 4.0
    """Seconds of computing at the measured speed. The longest that a client waits for a sole holder."""
    max_queue_bytes: int = 256 * 1024 * 1024
    """Memory for requests, their rows and their answers."""
    share_burst_s: float = 1.0
    """Seconds of the node that one peer may take ahead of others, once, before its fair share counts."""


@dataclass(frozen=True, slots=True)
class Wire:
    """What the owner lets through. `backlog_s`: how long answers that are ready will take to be sent. Rates: None
    without a limit."""

    backlog_s: Callable[[], float] = no_backlog
    up_bytes_per_s: float | None = None
    down_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Demand:
    """What one request asks of a node. `wait_s`: seconds until nobody waits for its answer."""

    peer: PeerId
    macs: int
    request_bytes: int = 0
    reply_bytes: int = 0
    wait_s: float = float("inf")

    @property
    def memory_bytes(self) -> int:
        """Body, the rows made of it, the answer."""
        return OVERHEAD_BYTES + 2 * self.request_bytes + self.reply_bytes


class Admission:
    """The backlog of one node.

    Limits: `AdmissionLimits`, and for each peer at most as much computing as is left free: so one client can fill half
    of the queue, two a third each, and a newcomer always finds room. A single request above the limits is let in only
    when the node is idle, so that no request is impossible for ever.
    """

    def __init__(self, limits: AdmissionLimits, clock: Callable[[], float], wire: Wire = Wire()) -> None:
        """clock: seconds, monotonic."""
        self._limits = limits
        self._wire = wire
        self._shares = Shares(limits.share_burst_s, clock)
        self._macs = 0
        self._bytes = 0
        self._macs_of: Counter[PeerId] = Counter()
        self._macs_per_s = INITIAL_MACS_PER_S
        self._is_measured = False
        self._num_admitted = 0
        self._is_draining = False
        self._changed = asyncio.Event()

    @property
    def num_admitted(self) -> int:
        """Requests that were let in and are not finished."""
        return self._num_admitted

    @property
    def backlog_s(self) -> float:
        """Time to work off what is admitted, in seconds."""
        return self._macs / self._macs_per_s

    @property
    def backlog_bytes(self) -> int:
        """Memory that what is admitted holds."""
        return self._bytes

    @property
    def macs_per_s(self) -> float:
        return self._macs_per_s

    def drain(self) -> None:
        """Refuse everything from now on, until `reopen`."""
        self._is_draining = True

    def reopen(self) -> None:
        """Let requests in again."""
        self._is_draining = False

    async def until_idle(self) -> None:
        """Return when everything that was let in has finished."""
        while self._num_admitted:
            self._changed.clear()
            await self._changed.wait()

    @contextmanager
    def admit(self, demand: Demand) -> Iterator[None]:
        """Hold room for one request.

        Raises:
            Busy: a backlog is full; says when it will have room. Draining: the node is leaving.
        """
        if self._is_draining:
            raise Draining("this node is leaving")
        if self._num_admitted:
            self._check_room(demand)
            self._check_share(demand)
        if (wire_backlog_s := self._wire.backlog_s()) > MAX_WIRE_BACKLOG_S:
            raise Busy("the owner's limit on bytes is reached", wire_backlog_s)
        self._shares.spend(demand.peer, demand.macs / self._macs_per_s, self._wire_s(demand))
        self._count(demand, 1)
        try:
            yield
        finally:
            self._count(demand, -1)
            self._changed.set()

    def observe(self, macs: int, compute_s: float) -> None:
        """Learn the speed from one finished call."""
        if compute_s > 0:
            weight = SMOOTHING if self._is_measured else 1.0
            self._macs_per_s += weight * (macs / compute_s - self._macs_per_s)
            self._is_measured = True

    def _check_room(self, demand: Demand) -> None:
        """
        Raises:
            Busy: when this is worked off that far, there will be room.
        """
        limits, backlog_s = self._limits, self.backlog_s
        over_s = backlog_s + demand.macs / self._macs_per_s - limits.max_queue_s
        if over_s > 0:
            raise self._busy("the node's queue is full", min(over_s, backlog_s))
        over_bytes = self._bytes + demand.memory_bytes - limits.max_queue_bytes
        if over_bytes > 0:
            raise self._busy("the node's memory for requests is full", backlog_s * min(1.0, over_bytes / self._bytes))
        if (late_s := self._wait_s(demand.peer) - demand.wait_s) > 0:
            raise self._busy("the answer would come after its deadline", late_s)

    def _check_share(self, demand: Demand) -> None:
        """
        Raises:
            Busy: this peer has more than its share while others wait.
        """
        own = self._macs_of[demand.peer]
        free_s = self._limits.max_queue_s - self.backlog_s
        if own and (over_s := (own + demand.macs) / self._macs_per_s - free_s) > 0:
            raise self._busy("this peer's part of the queue is full", min(over_s, self.backlog_s))
        if self._macs > own and (wait_s := self._shares.wait_s(demand.peer)) > 0:
            raise self._busy("this peer is over its share", wait_s)

    def _wait_s(self, peer: PeerId) -> float:
        """How long a new request of `peer` waits for the kernel: peers take turns (`fair_queue.py`)."""
        turns = (self._macs_of[peer] + 1) * len(self._macs_of.keys() | {peer})
        return min(self._macs, turns) / self._macs_per_s

    def _wire_s(self, demand: Demand) -> float:
        wire = self._wire
        up_s = demand.reply_bytes / wire.up_bytes_per_s if wire.up_bytes_per_s else 0.0
        down_s = demand.request_bytes / wire.down_bytes_per_s if wire.down_bytes_per_s else 0.0
        return max(up_s, down_s)

    def _count(self, demand: Demand, sign: int) -> None:
        self._macs += sign * demand.macs
        self._bytes += sign * demand.memory_bytes
        self._num_admitted += sign
        self._macs_of[demand.peer] += sign * demand.macs
        if not self._macs_of[demand.peer]:
            del self._macs_of[demand.peer]

    def _busy(self, reason: str, retry_after_s: float) -> Busy:
        longest_s = float("inf") if self._is_measured else UNMEASURED_RETRY_S
        return Busy(reason, max(MIN_RETRY_AFTER_S, min(retry_after_s, longest_s)))
