"""The node's part of the settings file, `shoal.toml` in the platform's configuration directory.

`[node]` has the names of NodeSettings and `[node.guest]` those of GuestSettings; sizes and rates may be words, `2GB`.
An unknown name is an error with a suggestion, because a limit that is misspelt is no limit.
"""

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
from shoal.protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from shoal.node.settings import NodeSettings

Table = Mapping[str, object]


def settings_path() -> Path:
    """E.g. `~/.config/shoal/shoal.toml`; honours `XDG_CONFIG_HOME`."""
    return user_config_path("shoal") / "shoal.toml"


def read_node_table(path: Path) -> dict[str, object]:
    """The table `[node]`, and in it, as `mqtt`, that of `[telemetry.mqtt]`; empty if there is no file.

    Raises:
        InvalidRequest: no TOML, or a table that is none.
    """
    if not path.exists():
        return {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} is no TOML: {error}") from None
    table = document.get("node", {})
    if not isinstance(table, dict):
        raise InvalidRequest(f"{path}: node is not a table; write [node]")
    telemetry = document.get("telemetry", {})
    if not isinstance(telemetry, dict) or "mqtt" in table:
        raise InvalidRequest(f"{path}: telemetry is a table of its own; write [telemetry.mqtt]")
    _check_names(telemetry, ["mqtt"], "telemetry")
    return {**table, **telemetry}


def node_settings(table: Table, flags: Table, guest_flags: Table) -> "NodeSettings":
    """Settings from the file's `[node]` and, before it, what was said on the command line (None: nothing was).

    Raises:
        InvalidRequest: an unknown name, or a value of another type.
    """
    from shoal.node.mqtt_settings import MqttSettings
    from shoal.node.settings import GuestSettings, NodeSettings

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
        return msgspec.convert(merged, NodeSettings, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"in the settings: {error}") from None


def write_node_table(path: Path, own: Table, guest: Table) -> None:
    """Make the file; what is None is left out. Values: numbers, booleans, plain words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Made by the first `shoal node`; edit it as you like.",
        "version = 1",
        "",
        "[node]",
    ]
    lines += [f"{name} = {_toml(value)}" for name, value in _said(own).items()]
    lines += ["", "[node.guest]"]
    lines += [f"{name} = {_toml(value)}" for name, value in _said(guest).items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


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


def _path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser()
    if kind is Path and isinstance(value, Path):
        return value
    raise NotImplementedError


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return msgspec.json.encode(value).decode()  # numbers and basic strings are the same in TOML
