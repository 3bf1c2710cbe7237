"""A node's list of revoked tokens: a file of token ids, one a line, which is looked at in every handshake.

So `shoal invite --revoke` takes effect for new handshakes at once, in every node of this machine, without a word to
them. Other machines learn of it by the founder's signed list (`revocation_list.py`).
"""

from pathlib import Path


class Revocations:
    """Reads `path` again when it has changed. A file that is missing revokes nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._ids: frozenset[str] = frozenset()

    def __call__(self, token_id: str) -> bool:
        """Whether this token was revoked.

        Raises:
            OSError: the list is there and can not be read; nobody is let in then.
        """
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        if stamp != self._stamp:
            self._ids = frozenset(self._path.read_text(encoding="ascii").split())
            self._stamp = stamp
        return token_id in self._ids
