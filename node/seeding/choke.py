"""Who may take pieces from us at a time: a few turns, a piece long while others wait, first come first served.

Pure: no clock of its own, no channels. A peer that has had its piece and wants more goes to the end of the line if
there is one; alone it may go on. A peer that falls silent loses its turn, or its place in the line.
"""

from dataclasses import dataclass

from shoal.protocol.errors import Busy
from shoal.protocol.ids import PeerId

MIN_TURNS, START_TURNS, MAX_TURNS = 2, 4, 12
"""Peers at a time. More than needed share the same uplink and finish later, and only a whole piece can be passed on;
fewer leave a fast uplink idle, for each taker has a slow line, or other givers."""

TURN_S = 20.0
"""So long a turn should last: as many peers are served as make it so."""

NUM_MEASURED = 3
"""Turns that end before their length says anything."""

TURN_IDLE_S = 5.0
"""Who asks for nothing for so long has left, or is slower than everybody else who waits."""

MAX_WAITING = 256
"""Peers in the line; one more is told BUSY without a place."""

MIN_RETRY_S, NEXT_RETRY_S, MAX_RETRY_S = 0.25, 1.0, 10.0
"""When to ask again: when the turns before are over, by the pace of the last ones; who is next, within the second."""

RESERVED_S = 2.0
"""So long a free turn is kept for who is next; then whoever asks may have it, that the uplink may not lie idle."""

WAITING_GRACE_S = 10.0
"""Who does not come back so long after it was asked to has found another."""

SMOOTHING = 0.3
"""Weight of the last turn in their mean length."""


@dataclass(slots=True)
class _Turn:
    began_s: float
    asked_s: float
    given_bytes: int = 0


class Choke:
    """The turns of one node.

    Limits: `START_TURNS` peers are served at first, then `MIN_TURNS` to `MAX_TURNS`; `MAX_WAITING` keep a place; all
    others are told BUSY.
    """

    def __init__(self, piece_bytes: int, num_turns: int | None = None) -> None:
        """piece_bytes: what a turn may take while others wait. num_turns: at a time; None: as the pace asks for."""
        self._piece_bytes = piece_bytes
        self._most_turns = START_TURNS if num_turns is None else num_turns
        self._is_adapting = num_turns is None
        self._turns: dict[PeerId, _Turn] = {}
        self._waiting: dict[PeerId, float] = {}
        """In order of arrival: until when a place is kept."""
        self._turn_s = 1.0
        self._num_ended = 0
        self._freed_s = float("-inf")

    @property
    def most_turns(self) -> int:
        """Peers that may be served now."""
        return self._most_turns

    @property
    def num_turns(self) -> int:
        """Peers that are being served."""
        return len(self._turns)

    @property
    def num_waiting(self) -> int:
        """Peers in the line."""
        return len(self._waiting)

    def enter(self, peer: PeerId, now_s: float) -> None:
        """`peer` asks for a part of a piece.

        Raises:
            Busy: it is not its turn; says when to ask again.
        """
        self._forget(now_s)
        turn = self._turns.get(peer)
        if turn is not None and turn.given_bytes >= self._piece_bytes and self._waiting:
            self._end(peer, now_s)
            turn = None
        if turn is None:
            turn = self._begin(peer, now_s)
        turn.asked_s = now_s

    def count(self, peer: PeerId, size_bytes: int, now_s: float) -> None:
        """So many bytes were given to `peer` in its turn."""
        if peer in self._turns:
            self._turns[peer].given_bytes += size_bytes
            self._turns[peer].asked_s = now_s

    def _begin(self, peer: PeerId, now_s: float) -> _Turn:
        before = list(self._waiting)
        place = before.index(peer) if peer in self._waiting else len(before)
        num_free = self._most_turns - len(self._turns)
        if place < num_free or (num_free and now_s - self._freed_s > RESERVED_S):
            self._waiting.pop(peer, None)
            turn = self._turns[peer] = _Turn(now_s, now_s)
            return turn
        retry_s = self._retry_s(place)
        if peer in self._waiting or len(before) < MAX_WAITING:
            self._waiting[peer] = now_s + retry_s + WAITING_GRACE_S
        raise Busy(f"{len(self._turns)} peers take pieces, {place} wait before", retry_s)

    def _retry_s(self, place: int) -> float:
        rounds = place // self._most_turns
        latest_s = MAX_RETRY_S if rounds else NEXT_RETRY_S
        return min(latest_s, max(MIN_RETRY_S, self._turn_s * (0.25 + rounds)))

    def _end(self, peer: PeerId, now_s: float) -> None:
        lasted_s, self._freed_s = now_s - self._turns.pop(peer).began_s, now_s
        self._turn_s += SMOOTHING * (lasted_s - self._turn_s)
        self._num_ended += 1
        if self._is_adapting and self._num_ended >= NUM_MEASURED:
            fitting = min(self._most_turns * TURN_S / max(self._turn_s, 0.1), self._most_turns + 1)
            self._most_turns = round(min(MAX_TURNS, max(MIN_TURNS, fitting)))

    def _forget(self, now_s: float) -> None:
        for peer in [peer for peer, turn in self._turns.items() if now_s - turn.asked_s > TURN_IDLE_S]:
            self._freed_s = now_s
            del self._turns[peer]
        for peer in [peer for peer, until_s in self._waiting.items() if now_s > until_s]:
            del self._waiting[peer]
