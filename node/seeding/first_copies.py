"""How many pieces a node fetches from elsewhere before others have taken the last ones from it.

Of those that want the same piece one fetches it from the hub and passes it on. Whoever fetched many and has a slow line
would keep all others waiting; so the next is fetched when those before have been passed on, and another fetches it if
it is faster: what first copies a node gets follows from what it gives. Pure: times are arguments, of one clock.
"""

from collections import deque
from collections.abc import Callable, Iterable

START_PIECES = 2
"""On their way or not passed on yet, of a node that has given nothing: one is passed on while the next arrives."""

AHEAD_S = 20.0
"""What a node gives in so long may wait to be passed on: a taker knows of a piece ten seconds after it came (an
announcement and a look into the directory, five each), and has turns to wait for."""

NUM_SAMPLES = 5
"""Looks into the directory, five seconds each, over which the rate of giving is measured."""

RATE_DECAY = 0.9
"""From look to look: a node that nobody asks now is not a slow one."""

FORGET_S = 600.0
"""A piece that nobody took for so long is not waited for any more."""


HELP_SHARE = 0.06
"""Of the pieces that a node wants: so many it may fetch though a peer has them, or fetched them at the same moment.
Three replicas make 0.18 copies of it."""

FEW_PIECES = 9
"""Who wants fewer has no such piece: half of one would be due."""

HELP_JUDGED_S = 20.0
"""Whoever has a piece so soon after we began to fetch it did not get it from us."""


class Helping:
    """Pieces that a node fetches from elsewhere though another comes before it, because that one has others to pass on.

    Nobody sees what that one is fetching at this moment; so fetches in vain are counted, and end the help.
    """

    def __init__(self, chance: float = 0.0) -> None:
        """chance: 0 to 1, this node's own; of the nodes whose share is not a whole number of pieces so many round it
        up, that all together keep to it."""
        self._chance = chance
        self._began_s: dict[bytes, float] = {}
        self._wanted: set[bytes] = set()
        self._num_in_vain = 0

    def wants(self, digest: bytes) -> None:
        """One of the pieces that this node is to get."""
        self._wanted.add(digest)

    @property
    def num_left(self) -> int:
        """So many more may be fetched, even if those that are not judged were all in vain."""
        few = self._chance if len(self._wanted) >= FEW_PIECES else 0.0
        return max(0, int(HELP_SHARE * len(self._wanted) + few) - self._num_in_vain - len(self._began_s))

    @property
    def has_room(self) -> bool:
        """Whether one more may be fetched."""
        return self.num_left > 0

    def spends(self) -> None:
        """One is fetched that another has."""
        self._num_in_vain += 1

    def begins(self, digest: bytes, now_s: float) -> None:
        """It is on its way."""
        self._began_s[digest] = now_s

    def judge(self, is_there: Callable[[bytes], bool], now_s: float) -> None:
        """is_there: whether another has it."""
        for digest, began_s in list(self._began_s.items()):
            if is_there(digest) or now_s - began_s > HELP_JUDGED_S:
                self._num_in_vain += is_there(digest) and now_s - began_s <= HELP_JUDGED_S
                del self._began_s[digest]


class FirstCopies:
    """Pieces that come from elsewhere, or came, and that nobody else has yet.

    Limits: as many as are given away in `AHEAD_S`, at least one; before that is known, `START_PIECES`.
    """

    def __init__(self, piece_bytes: int) -> None:
        """piece_bytes: of one piece."""
        self._piece_bytes = piece_bytes
        self._since_s: dict[bytes, float] = {}
        self._samples: deque[tuple[float, int]] = deque(maxlen=NUM_SAMPLES)
        self._rate: float | None = None
        """Bytes a second; None: not a whole piece was given yet."""

    @property
    def has_room(self) -> bool:
        """Whether one more may be fetched."""
        if self._rate is None:
            return len(self._since_s) < START_PIECES
        return len(self._since_s) < max(1.0, self._rate * AHEAD_S / self._piece_bytes)

    def fetches(self, digest: bytes, now_s: float) -> None:
        """It is on its way."""
        self._since_s[digest] = now_s

    def forget(self, digests: Iterable[bytes]) -> None:
        """They have been passed on, or do not come."""
        for digest in digests:
            self._since_s.pop(digest, None)

    def unpassed(self, now_s: float) -> list[bytes]:
        """What waits to be passed on."""
        self.forget([digest for digest, since_s in self._since_s.items() if now_s - since_s > FORGET_S])
        return list(self._since_s)

    def count_given(self, given_bytes: int, now_s: float) -> None:
        """So many bytes in all have been given to others until now."""
        self._samples.append((now_s, given_bytes))
        since_s, before = self._samples[0]
        if now_s > since_s and given_bytes >= self._piece_bytes:
            self._rate = max(RATE_DECAY * (self._rate or 0.0), (given_bytes - before) / (now_s - since_s))
