"""The owner's pause on disk: a node that is killed and started again, or a machine that boots, keeps it.

`NAME.pause.json` in the state directory: `{"until_s": 1795348800.0}`, Unix time, or null until `shoal resume`. A file
that can not be read is a pause without an end: who asked for quiet gets it, and `shoal resume` removes the file.
"""

import json
from math import isfinite
from pathlib import Path

from shoal.node.guest.decision import UserPause
from shoal.node.guest.durable_file import replace_file


class PauseFile:
    """Keeps one node's pause. Blocking, a write of 30 bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, now_s: float) -> UserPause | None:
        """The pause that holds at this Unix time."""
        try:
            until_s = json.loads(self._path.read_text(encoding="utf-8"))["until_s"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return UserPause()
        if not isinstance(until_s, int | float) or isinstance(until_s, bool) or not isfinite(until_s):
            return UserPause()
        return UserPause(float(until_s)) if now_s < until_s else None

    def write(self, pause: UserPause | None) -> None:
        """Keep a pause, or forget it.

        Raises:
            OSError: the disk does not let us.
        """
        if pause is None:
            self._path.unlink(missing_ok=True)
        else:
            replace_file(self._path, json.dumps({"until_s": pause.until_s}))
