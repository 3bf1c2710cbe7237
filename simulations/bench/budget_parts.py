"""One exchange cut at the moments that its programs told: parts that add up to the whole, and what each was spent on.

The way of the slower of two answers: from the client to one holder, its worker thread, and back. Each part lies in one
thread, or goes from one to another; with a trace of the operating system (`os_trace.py`) it is divided into what the
programs ran, what the system ran for them, and waiting for a processor.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from shoal.protocol.events import DispatchSent, Event, ReplyReceived
from shoal.protocol.ids import PeerId
from shoal.simulations.bench.os_trace import OsTimes

NUM_HOLDERS = 2
Mark = tuple[str, float]
"""A moment's name, and when it was."""


class Where(Enum):
    """The threads that an exchange passes through."""

    CLIENT = "client"
    LOOP = "loop"
    """The holder's."""
    WORKER = "worker"
    """The holder's, where kernels run."""


@dataclass(frozen=True, slots=True)
class Part:
    """side: whose it is, in words. begins, ends: in which threads."""

    side: str
    what: str
    begins: Where
    ends: Where

    @property
    def is_hop(self) -> bool:
        """Whether it goes from one thread to another."""
        return self.begins is not self.ends


_C, _L, _W = Where.CLIENT, Where.LOOP, Where.WORKER
PARTS = (
    Part("client", "group, choose holders, start tasks, cut rows, header, hash", _C, _C),
    Part("client", "frame, TLS encryption, send (and of the other holder's before it)", _C, _C),
    Part("between", "sockets, wake-up of the holder, TLS decryption", _C, _L),
    Part("node", "check prefix and header", _L, _L),
    Part("node", "hash, admission to the session, task starts", _L, _L),
    Part("node", "check against what is held, admission, decode rows", _L, _L),
    Part("node", "to the worker thread", _L, _W),
    Part("kernel", "the experts", _W, _W),
    Part("node", "back to the loop", _W, _L),
    Part("node", "count, check finite, encode, header", _L, _L),
    Part("node", "frame, TLS encryption, send", _L, _L),
    Part("between", "sockets, wake-up of the client, TLS decryption", _L, _C),
    Part("client", "check prefix and header", _C, _C),
    Part("client", "to the task that waits", _C, _C),
    Part("client", "decode, check finite", _C, _C),
    Part("client", "health, events, end tasks, sum", _C, _C),
)
KERNEL = 7
"""Which of the parts is the experts' arithmetic."""

NODE_MOMENTS = ("bytes", "frame", "handler", "admitted", "kernel", "computed", "back", "write", "written")


@dataclass(frozen=True, slots=True)
class Cut:
    """One exchange's moments, one more than parts, and whose answer came last."""

    slowest: PeerId
    moments: tuple[float, ...]

    @property
    def parts_s(self) -> tuple[float, ...]:
        return tuple(later - earlier for earlier, later in pairwise(self.moments))


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of one part. Whatever is not known to be the system's or waiting counts as ours."""

    ours_s: float
    system_s: float
    waiting_s: float


def cut(
    started: float,
    ended: float,
    happened: Sequence[Event],
    ours: Sequence[Mark],
    theirs: Mapping[PeerId, Sequence[Mark]],
) -> Cut | None:
    """The way of an exchange's last answer; None if it was not an ordinary one (a request sent again)."""
    asked = [event.peer for event in happened if isinstance(event, DispatchSent)]
    answered = [event.peer for event in happened if isinstance(event, ReplyReceived)]
    names = [name for name, _ in ours]
    if len(asked) != NUM_HOLDERS or names.count("frame") != NUM_HOLDERS or names.count("decode") != NUM_HOLDERS:
        return None
    last = answered[-1]
    node, write = dict(theirs[last]), [at for name, at in ours if name == "write"]
    written = [at for name, at in ours if name == "written"]
    client = dict(ours)  # of each name the last
    events = [at for at in (client.get("bytes"), client.get("frame"), client.get("decode")) if at is not None]
    of_node = [node.get(f"node {name}") for name in NODE_MOMENTS]
    if len(events) != 3 or None in of_node or len(write) <= asked.index(last):
        return None
    moments = [started, write[asked.index(last)], written[asked.index(last)], *of_node, *events]
    return Cut(last, ordered([*moments, client["decoded"], ended]))


def ordered(moments: Sequence[float | None]) -> tuple[float, ...]:
    """Moments of which none is before the one before it; one that was (two processors) counts as that."""
    at = list[float]()
    for moment in moments:
        at.append(max(moment or 0.0, at[-1]) if at else moment or 0.0)
    return tuple(at)


def spent_on_parts(found: Cut, times: OsTimes, tids: Callable[[Where], Sequence[int]]) -> list[Spent]:
    """What each part was spent on. tids: of a thread of this exchange, and those that serve it (p2pd's).

    On a hop the work is where the thread is that it goes to, unless that is blocked; then where it comes from. While
    both are, and nobody who serves them runs, it is on its way through the system.
    """
    spent = list[Spent]()
    for part, (start, end) in zip(PARTS, pairwise(found.moments), strict=True):
        chosen = [*tids(part.ends), *tids(part.begins)] if part.is_hop else tids(part.ends)[:1]
        blocked, waiting, system, ours = times.spent(chosen, start, end)
        if part.is_hop:
            system += blocked
        else:
            ours += blocked  # nothing but its own work wakes it: a lock of ours, for one
        spent.append(Spent(ours, system, waiting))
    return spent
