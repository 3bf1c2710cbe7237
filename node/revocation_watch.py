"""Keeps a node's revocations up to date: the founder's list from file and directory, passed on, and acted on at once.

Looks at start and then for ever. What a later list says is kept in a file, so that a node that was restarted can not be
told an earlier one. Knows no sockets: connections are cut through the listeners' `expel`.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import mkstemp

from shoal.node.log_events import RevocationsNotFetched, RevocationsTaken, TokensExpelled, log_event
from shoal.protocol.errors import ShoalError
from shoal.protocol.limits import RECORD_TTL_S
from shoal.protocol.membership import IsRevoked
from shoal.protocol.net.channel import GatedListener
from shoal.protocol.net.directory import Posted, RevocationBoard
from shoal.protocol.revocation_list import RevocationBook, RevocationList

FILE_PAUSE_S = 2.0
"""Between looks at the files of this machine, where `shoal invite --revoke` writes: two `stat`."""

BOARD_PAUSE_S = RECORD_TTL_S / 3
"""Between looks into the directory."""


class RevocationWatch:
    """Whether tokens are revoked, by the founder's lists and by this machine's own (`local`).

    `path`: where the founder's list is kept; None: nowhere. `clock`: Unix time in seconds.
    """

    def __init__(
        self,
        founder_key: bytes,
        board: RevocationBoard,
        local: IsRevoked,
        path: Path | None,
        clock: Callable[[], float],
    ) -> None:
        self._book = RevocationBook(founder_key)
        self._board = board
        self._local = local
        self._path = path
        self._clock = clock

    def __call__(self, token_id: str) -> bool:
        """Asked in every handshake."""
        return self._book(token_id) or self._local(token_id)

    @property
    def latest(self) -> RevocationList | None:
        """The latest list that we know."""
        return self._book.latest

    async def look(self) -> None:
        """Read the file and ask the directory once; give it what it does not know."""
        self.read_file()
        try:
            posted = await self._board.posted()
            for each in posted:
                self._take(each.encoded)
            if self.latest is not None and not self._hangs(self.latest, posted):
                await self._board.post(self.latest)
        except ShoalError as error:
            log_event(RevocationsNotFetched(type(error).__name__))

    def read_file(self) -> None:
        """Take what the founder, or another node of this machine, has written meanwhile."""
        try:
            encoded = self._path.read_bytes() if self._path is not None else b""
        except OSError:
            return  # none yet; what we know stays
        if encoded:
            self._take(encoded)

    def expel(self, listeners: Sequence[GatedListener]) -> None:
        """Cut every connection of a revoked token."""
        try:
            num_cut = sum(listener.expel(self) for listener in listeners)
        except OSError as error:  # the list of this machine can not be read: handshakes fail, sessions go on
            log_event(RevocationsNotFetched(type(error).__name__))
            return
        if num_cut:
            log_event(TokensExpelled(num_cut))

    async def run(self, listeners: Sequence[GatedListener]) -> None:
        """Look for ever; between looks into the directory, at the files."""
        while True:
            for _ in range(max(1, round(BOARD_PAUSE_S / FILE_PAUSE_S))):
                known = self.latest
                self.read_file()
                self.expel(listeners)
                if self.latest is not known:
                    break  # the founder is here: tell the swarm now
                await asyncio.sleep(FILE_PAUSE_S)
            await self.look()
            self.expel(listeners)

    def _take(self, encoded: bytes) -> None:
        """Take a later list and keep it; what is forged or earlier is nobody's news."""
        try:
            is_news = self._book.take(encoded)
        except ShoalError:
            return
        if is_news and self.latest is not None:
            log_event(RevocationsTaken(self.latest.number))
            if self._path is not None:
                _replace(self._path, encoded)

    def _hangs(self, revocations: RevocationList, posted: Sequence[Posted]) -> bool:
        """Whether others keep this list there for long enough; not every member has to hang it up every time."""
        fresh_s = self._clock() + RECORD_TTL_S / 2
        return any(each.encoded == revocations.encoded and each.expires_at_s > fresh_s for each in posted)


def _replace(path: Path, data: bytes) -> None:
    """Put a file in place, whole, readable by its owner alone; a disk that is full costs its memory alone."""
    try:
        if path.exists() and path.read_bytes() == data:
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        log_event(RevocationsNotFetched(type(error).__name__))
