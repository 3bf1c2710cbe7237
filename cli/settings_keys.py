"""Every setting there is: its key, type, unit, default and reason, all read from the frozen settings dataclasses.

Knows neither the file nor the environment; `settings_layers.py` puts those above the defaults found here.
"""

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from enum import Enum
from math import isfinite
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import msgspec
import typer

from shoal.cli.options import parse_size
from shoal.protocol.errors import InvalidRequest

Plain = bool | int | float | str | list[str] | None
"""A value as TOML and JSON have it; None: nothing is set."""

NONE = "none"
"""How a file, a variable or `config set` says None, for which TOML has no word."""

SECTIONS = ("node", "node.guest", "telemetry", "telemetry.mqtt", "client", "serve")
CLIENT_NAMES = ("model", "dtype", "channel", "lan", "trunk_format", "speculate", "activations", "prefill_ahead")
"""What `run`, `chat` and `serve` can be told of SwarmSettings."""

UNITS = (("_bytes_per_s", "B/s"), ("_bytes", "B"), ("_macs", "MAC"), ("_s", "s"), ("_c", "°C"), ("_w", "W"))
"""Endings of names, the longest first."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `kind`: its Python type, with its range; `default`: None too where there is none (`is_required`)."""

    key: str
    kind: object
    default: Plain
    is_required: bool
    unit: str
    reason: str

    @property
    def takes_none(self) -> bool:
        """Whether `none` is a value of it."""
        return self.is_required or type(None) in get_args(self.kind)


def known_settings(sections: tuple[str, ...] = SECTIONS) -> dict[str, Setting]:
    """All settings of some sections by key, in the order of their classes. What is a secret has no key."""
    found: list[Setting] = []
    for section in sections:
        for owner, names in _owners(section):
            found += _settings_of(owner, section, names)
    return {each.key: each for each in found}


def _owners(section: str) -> list[tuple[type, tuple[str, ...]]]:
    """The class behind a section and the names taken from it; imported here, so that a client loads no node."""
    if section == "node":
        from shoal.node.settings import NodeSettings

        return [(NodeSettings, _names(NodeSettings, "membership", "guest", "mqtt"))]
    if section == "node.guest":
        from shoal.node.settings import GuestSettings

        return [(GuestSettings, _names(GuestSettings))]
    if section == "telemetry.mqtt":
        from shoal.node.telemetry.mqtt_settings import MqttSettings

        return [(MqttSettings, _names(MqttSettings))]
    if section == "client":
        from shoal.client.settings import SwarmSettings

        return [(SwarmSettings, CLIENT_NAMES)]
    if section == "serve":
        from shoal.client.api.settings import ApiSettings

        return [(ApiSettings, _names(ApiSettings, "api_key"))]
    return []


def _names(owner: type, *left_out: str) -> tuple[str, ...]:
    return tuple(each.name for each in fields(owner) if each.name not in left_out)


def _settings_of(owner: type, section: str, names: tuple[str, ...]) -> list[Setting]:
    kinds, reasons = get_type_hints(owner, include_extras=True), field_docs(owner)
    return [
        Setting(
            key=f"{section}.{each.name}", kind=kinds[each.name],
            default=None if each.default is MISSING else as_plain(each.default),
            is_required=each.default is MISSING and each.default_factory is MISSING,
            unit=next((unit for ending, unit in UNITS if each.name.endswith(ending)), ""),
            reason=reasons.get(each.name, ""),
        )
        for each in fields(owner) if each.name in names
    ]  # fmt: skip


def field_docs(owner: type) -> dict[str, str]:
    """The string under every field of a class, on one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    docs: dict[str, str] = {}
    if isinstance(body, ast.ClassDef):
        for field, below in zip(body.body, body.body[1:], strict=False):
            is_doc = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_doc:
                docs[field.target.id] = " ".join(ast.literal_eval(below.value).split())  # type: ignore[attr-defined]
    return docs


def refuse_unknown(key: str, known: Mapping[str, Setting], where: str = "") -> None:
    """
    Raises:
        InvalidRequest: there is no such setting; says which one may be meant. `where`: a file or variable, `X: `.
    """
    if key in known:
        return
    section, _, name = key.rpartition(".")
    elsewhere = [each for each in (*known, *SECTIONS) if each.endswith(f".{name}")]
    siblings = {each.removeprefix(f"{section}.").split(".")[0] for each in known if each.startswith(f"{section}.")}
    names = sorted(siblings) if section else sorted({each.split(".")[0] for each in known})
    if elsewhere:
        meant = f"did you mean {elsewhere[0]}?"
    elif close := get_close_matches(name, names, n=1) or get_close_matches(key, known, n=1):
        meant = f"did you mean {close[0]}?"
    else:
        meant = f"known are {', '.join(names or sorted(SECTIONS))}"
    raise InvalidRequest(f"{where}the settings have no {key}; {meant}")


def checked(setting: Setting, value: object, *, is_words: bool = False, where: str = "") -> Plain:
    """A value of a file, or (`is_words`) of a variable or the command line, if it is one of this setting's.

    Raises:
        InvalidRequest: another type, or out of range; names the key.
    """
    if value == NONE and setting.takes_none:
        return None
    try:
        if isinstance(value, str) and "_bytes" in setting.key:
            value = parse_size(value)
        if is_words and isinstance(value, str) and get_origin(setting.kind) is tuple:
            value = [each.strip() for each in value.split(",") if each.strip()]
        typed = msgspec.convert(value, setting.kind, strict=not is_words, dec_hook=path_hook)
        _check_meaning(setting, typed)
    except (msgspec.ValidationError, typer.BadParameter, InvalidRequest) as error:
        unit = f" (in {setting.unit})" if setting.unit else ""
        raise InvalidRequest(f"{where}{setting.key}{unit} can not be {value!r}: {error}") from None
    return as_plain(typed)


def _check_meaning(setting: Setting, typed: object) -> None:
    """What a type can not say."""
    if isinstance(typed, float) and not isfinite(typed):
        raise InvalidRequest("a finite number is needed")
    if setting.key in ("node.guest.schedule", "node.guest.time_zone"):
        from shoal.node.guest.schedule import parse_schedule

        parse_schedule(*((str(typed), "") if setting.key.endswith("schedule") else ("", str(typed))))


def as_plain(value: object) -> Plain:
    """A typed value as a file has it."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [str(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"no plain value: {type(value).__name__}")


def as_words(value: Plain) -> str:
    """A value as `config get` prints it and `config set` takes it."""
    if isinstance(value, list):
        return ",".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    return NONE if value is None else str(value)


def path_hook(kind: type, value: object) -> object:
    """For msgspec: a path from its words."""
    if kind is Path and isinstance(value, str | Path):
        return Path(value).expanduser()
    raise NotImplementedError  # msgspec's way to be told that a hook does not know a type
