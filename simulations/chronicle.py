"""What happened to a stream of tokens, and when: an observer of events beside the tokens' own times.

Shared by `shoal simulate --local` and the chaos scenarios. Knows no processes; times are of `time.perf_counter`.
"""

import asyncio
import math
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from shoal.protocol.events import DispatchSent, Event, FailedOver, Hedged, HolderJoined, ReplyReceived
from shoal.protocol.ids import PeerId


@dataclass(frozen=True, slots=True)
class TokenTime:
    """One token, from the one before it; the first of an answer is not recorded, for a prefill is no token."""

    started: float
    ended: float

    @property
    def ms(self) -> float:
        return (self.ended - self.started) * 1000

    def overlaps(self, since: float, until: float) -> bool:
        return self.started <= until and since <= self.ended


@dataclass(frozen=True, slots=True)
class Replaced:
    """A call that a replica answered because its holder had failed or was late."""

    at: float
    peer: PeerId
    call_ms: float


@dataclass(slots=True)
class Fault:
    """What was done to some peers. `until`: None while it lasts. A death has no end, and hits what is under way."""

    at: float
    peers: frozenset[PeerId]
    is_death: bool = False
    until: float | None = None

    @property
    def span(self) -> tuple[float, float]:
        """When tokens can not but meet it."""
        return self.at, self.at if self.is_death else self.end

    @property
    def end(self) -> float:
        return math.inf if self.until is None else self.until


class Chronicle:
    """Records; tells who waits for tokens or holders."""

    def __init__(self) -> None:
        self.tokens: list[TokenTime] = []
        self.replaced: list[Replaced] = []
        self.faults: list[Fault] = []
        self.exchanges_ms: list[float] = []
        self.last_reply: dict[PeerId, float] = {}
        self.last_joined: dict[PeerId, float] = {}
        self.num_tokens = 0
        self._last_token_at: float | None = None
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None
        self._waits_for: tuple[Collection[PeerId], Callable[[PeerId], None]] | None = None

    def __call__(self, event: Event) -> None:
        """Observe."""
        now = time.perf_counter()
        if isinstance(event, DispatchSent):
            self._on_dispatch(event.peer)
        elif isinstance(event, ReplyReceived):
            self.exchanges_ms.append(event.exchange_s * 1000)
            self._tell(self.last_reply, event.peer, now)
        elif isinstance(event, HolderJoined):
            self._tell(self.last_joined, event.peer, now)
        elif isinstance(event, FailedOver) or (isinstance(event, Hedged) and event.has_won):
            self.replaced.append(Replaced(now, event.peer, event.call_s * 1000))

    def begin_answer(self) -> None:
        """The next token is the first of its answer."""
        self._last_token_at = None

    def add_token(self) -> None:
        """A token has come, now."""
        now = time.perf_counter()
        if self._last_token_at is not None:
            self.tokens.append(TokenTime(self._last_token_at, now))
        self._last_token_at = now
        self.num_tokens += 1
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        """No more tokens come: those who wait for them learn it."""
        self._failure = error
        self._changed.set()

    def at_next_dispatch(self, peers: Collection[PeerId], act: Callable[[PeerId], None]) -> None:
        """Call `act` once, the moment a request to one of these has been sent: so that the fault hits a request."""
        self._waits_for = (peers, act)

    async def more_tokens(self, count: int) -> None:
        """Wait for so many tokens from now. Raises: whatever ended the tokens."""
        target = self.num_tokens + count
        await self._until(lambda: self.num_tokens >= target)

    async def until_dispatched(self) -> None:
        """Wait until what `at_next_dispatch` was told has happened. Raises as `more_tokens`."""
        await self._until(lambda: self._waits_for is None)

    async def until_joined(self, peers: Collection[PeerId], since: float) -> None:
        """Wait until the client is connected to these, anew since then. Raises as `more_tokens`."""
        await self._until(lambda: all(self.last_joined.get(peer, 0.0) > since for peer in peers))

    async def until_replied(self, peers: Collection[PeerId], since: float) -> None:
        """Wait until each of these has answered a request since then. Raises as `more_tokens`."""
        await self._until(lambda: all(self.last_reply.get(peer, 0.0) > since for peer in peers))

    def begin_fault(self, peers: Iterable[PeerId], *, is_death: bool = False) -> Fault:
        """A fault begins now."""
        fault = Fault(time.perf_counter(), frozenset(peers), is_death)
        self.faults.append(fault)
        return fault

    def end_fault(self, fault: Fault) -> None:
        """It ends now."""
        fault.until = time.perf_counter()

    def met(self, fault: Fault) -> list[TokenTime]:
        """Tokens in which a call of the fault's peers was answered by others, and the one that was under way."""
        calls = [each for each in self.replaced if each.peer in fault.peers and fault.at <= each.at <= fault.end]
        return [
            token
            for token in self.tokens
            if token.overlaps(fault.at, fault.at) or any(token.overlaps(call.at, call.at) for call in calls)
        ]

    def before(self) -> list[TokenTime]:
        """Tokens that had come when the first fault began."""
        return [token for token in self.tokens if not self.faults or token.ended < self.faults[0].at]

    def during(self) -> list[TokenTime]:
        """Tokens that met a fault or grew while one lasted."""
        met = {token for fault in self.faults for token in self.met(fault)}
        spans = [fault.span for fault in self.faults]
        return [token for token in self.tokens if token in met or any(token.overlaps(*span) for span in spans)]

    def after(self) -> list[TokenTime]:
        """Tokens since the first fault that no fault touched."""
        touched, first = set(self.during()), self.faults[0].at if self.faults else float("inf")
        return [token for token in self.tokens if token.started > first and token not in touched]

    def extras_ms(self, fault: Fault) -> list[float]:
        """What the fault cost each token that met it, beyond the median token before any fault."""
        usual_ms = median_ms(self.before())
        return [token.ms - usual_ms for token in self.met(fault)]

    def _on_dispatch(self, peer: PeerId) -> None:
        if self._waits_for is not None and peer in self._waits_for[0]:
            act = self._waits_for[1]
            self._waits_for = None
            act(peer)
            self._changed.set()

    def _tell(self, times: dict[PeerId, float], peer: PeerId, now: float) -> None:
        times[peer] = now
        self._changed.set()

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()


def median_ms(tokens: Sequence[TokenTime]) -> float:
    """0 for none."""
    return statistics.median(token.ms for token in tokens) if tokens else 0.0


def p99_ms(tokens: Sequence[TokenTime]) -> float:
    """The 99th percentile as the nearest rank: of less than a hundred, the worst. 0 for none."""
    ordered = sorted(token.ms for token in tokens)
    return ordered[round(0.99 * (len(ordered) - 1))] if ordered else 0.0
