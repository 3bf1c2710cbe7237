"""The user's own keys: a TOML file that gives keys to actions by id. Pure but for reading that file.

    [keys]
    "chat.stop" = "escape,ctrl+k"
    "go.swarm" = "v"

Ids are the bindings' own, shown by the help screen. A mistake is told at the start with the nearest id, because a key
that silently does nothing is worse than none.
"""

import difflib
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path

from shoal.protocol.errors import InvalidRequest


def load_keymap(path: Path, known: Collection[str]) -> dict[str, str]:
    """Keys by action id; empty if there is no file.

    Raises:
        InvalidRequest: not TOML, an unknown action, or keys that are no text.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path}: {error}") from error
    return checked_keymap(settings, known, str(path))


def checked_keymap(settings: Mapping[str, object], known: Collection[str], source: str) -> dict[str, str]:
    """The table `keys`, checked. Raises as `load_keymap`."""
    unknown = set(settings) - {"keys"}
    if unknown:
        raise InvalidRequest(f"{source}: unknown table {', '.join(sorted(unknown))}; there is only [keys]")
    keys = settings.get("keys", {})
    if not isinstance(keys, dict):
        raise InvalidRequest(f"{source}: keys is no table")
    for action, value in keys.items():
        if action not in known:
            near = difflib.get_close_matches(action, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known))}"
            raise InvalidRequest(f"{source}: unknown action {action!r}{hint}")
        if not isinstance(value, str) or not value.strip():
            raise InvalidRequest(f'{source}: keys of {action} must be text such as "ctrl+k" or "f5,g"')
    return dict(keys)
