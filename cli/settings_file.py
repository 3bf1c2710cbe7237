"""The settings file, `shoal.toml` in the platform's configuration directory, and the node's settings made from it.

`[node]` has the names of NodeSettings and `[node.guest]` those of GuestSettings; sizes and rates may be words, `2GB`.
An unknown name is an error with a suggestion, because a limit that is misspelt is no limit. The environment above the
file is in `settings_layers.py`, the list of all settings in `settings_keys.py`.
"""

import json
import os
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import typer
from platformdirs import user_config_path

from shoal.cli.options import parse_size
from shoal.cli.settings_keys import path_hook
from shoal.protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from shoal.node.settings import NodeSettings

Table = Mapping[str, object]

VERSION = 1
"""Of the file. A newer one is refused: what it says might be a limit that we do not know."""


def settings_path() -> Path:
    """E.g. `~/.config/shoal/shoal.toml`; honours `XDG_CONFIG_HOME`."""
    return user_config_path("shoal") / "shoal.toml"


def read_document(path: Path) -> dict[str, object]:
    """The whole file; empty if there is none.

    Raises:
        InvalidRequest: no TOML, or of a version that is newer than ours.
    """
    if not path.exists():
        return {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} is no TOML: {error}") from None
    version = document.get("version", VERSION)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InvalidRequest(f"{path}: version is {version!r}; write version = {VERSION}")
    if version > VERSION:
        raise InvalidRequest(f"{path} has version {version}, this shoal reads {VERSION}; update shoal")
    return document


def node_settings(table: Table, flags: Table, guest_flags: Table) -> "NodeSettings":
    """Settings from the file's `[node]` and, before it, what was said on the command line (None: nothing was).

    Raises:
        InvalidRequest: an unknown name, or a value of another type.
    """
    from shoal.node.settings import GuestSettings, NodeSettings
    from shoal.node.telemetry.mqtt_settings import MqttSettings

    guest = table.get("guest", {})
    if not isinstance(guest, dict):
        raise InvalidRequest("node.guest is not a table; write [node.guest]")
    own = {name: value for name, value in table.items() if name != "guest"}
    if isinstance(mqtt := table.get("mqtt"), dict):
        _check_names(mqtt, [field.name for field in fields(MqttSettings)], "telemetry.mqtt")
    _check_names(own, [field.name for field in fields(NodeSettings) if field.name != "membership"], "node")
    _check_names(guest, [field.name for field in fields(GuestSettings)], "node.guest")
    merged = {**_sizes(own), **_said(flags), "guest": {**_sizes(guest), **_said(guest_flags)}}
    try:
        return msgspec.convert(merged, NodeSettings, dec_hook=path_hook)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"in the settings: {error}") from None


def write_node_table(path: Path, own: Table, guest: Table) -> None:
    """Make the file, or add to one without `[node]`; what is None is left out. Values: numbers, booleans, words."""
    tables: Table = {"node": {**_said(own), "guest": _said(guest)}}
    if path.exists():
        write_document(path, tables, path.read_text(encoding="utf-8").rstrip() + "\n\n")
    else:
        write_document(path, {"version": VERSION, **tables}, "# Made by the first `shoal node`; edit it as you like.\n")


def write_document(path: Path, document: Table, above: str = "") -> None:
    """Put a whole new file in the place of the old one, or leave that as it is; its mode stays, a new one has 0600."""
    path.parent.mkdir(parents=True, exist_ok=True)
    target = path.resolve()  # a link to a file that is kept elsewhere stays one
    text = above + "\n".join(_lines(document, "")).strip() + "\n"
    descriptor, unfinished = tempfile.mkstemp(prefix=".shoal-", dir=target.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            os.chmod(unfinished, target.stat().st_mode & 0o777)
        os.replace(unfinished, target)
    except BaseException:
        os.unlink(unfinished)
        raise


def _lines(table: Table, section: str) -> list[str]:
    """A table as TOML: its own values first, then those in it."""
    own = {name: value for name, value in table.items() if not isinstance(value, dict)}
    lines = ["", f"[{section}]"] if section and own else []
    lines += [f"{name} = {toml_value(value)}" for name, value in own.items()]
    for name, value in table.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{section}.{name}" if section else name)
    return lines


def _check_names(table: Table, known: list[str], section: str) -> None:
    for name in table:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            meant = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
            raise InvalidRequest(f"the settings have no {section}.{name}{meant}")


def _sizes(table: Table) -> dict[str, object]:
    """The table with sizes in words as bytes."""
    try:
        return {
            name: parse_size(value) if isinstance(value, str) and "_bytes" in name else value
            for name, value in table.items()
        }
    except typer.BadParameter as error:
        raise InvalidRequest(f"in the settings: {error}") from None


def _said(table: Table) -> dict[str, object]:
    return {name: value for name, value in table.items() if value is not None}


def toml_value(value: object) -> str:
    """Numbers, booleans, lists and basic strings are in TOML as in JSON, but for DEL."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
