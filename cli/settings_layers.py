"""Which value a setting has, and who said so: flag > environment > file > default.

Flags are the verbs' own; this puts the environment (`SHOAL_NODE__GUEST__IDLE_ONLY`) over the file over the defaults.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from shoal.cli.settings_file import Table, read_document
from shoal.cli.settings_keys import SECTIONS, Plain, Setting, checked, known_settings, refuse_unknown
from shoal.protocol.errors import InvalidRequest

Environ = Mapping[str, str]

PREFIX = "SHOAL_"
FLAG_VARIABLES = {
    "node.model": "SHOAL_MODEL",
    "node.share_bytes": "SHOAL_SHARE",
    "node.host": "SHOAL_HOST",
    "node.kernel": "SHOAL_KERNEL",
    "client.model": "SHOAL_MODEL",
}
"""Variables that flags have had from the beginning; they come before the long names."""

OPTION_NAMES = {"allowed_hosts": "allowed_host", "cors_origins": "cors_origin"}
"""Where a verb's parameter, which is repeated, is called otherwise than the setting."""


@dataclass(frozen=True, slots=True)
class ShownSetting:
    """A setting as it is now. `origin`: environment, file or default; `source`: the variable or the file."""

    key: str
    value: Plain
    origin: str
    source: str
    default: Plain
    unit: str
    reason: str


@dataclass(frozen=True, slots=True)
class ShownSettings:
    """What `shoal config show --json` prints."""

    version: int
    path: str
    settings: tuple[ShownSetting, ...]


def effective(path: Path, environ: Environ, sections: tuple[str, ...] = SECTIONS) -> list[ShownSetting]:
    """Every setting of some sections with its value and origin; of others in the file only the section is looked at.

    Raises:
        InvalidRequest: an unknown key or section, or a value that is none of its setting's.
    """
    known = known_settings(sections)
    in_file = from_document(read_document(path), known, sections, f"{path}: ")
    in_environment = from_environment(environ, known, sections)
    return [_shown(each, path, in_file, in_environment) for each in known.values()]


def _shown(
    setting: Setting, path: Path, in_file: Mapping[str, Plain], in_environment: Mapping[str, tuple[str, Plain]]
) -> ShownSetting:
    value, origin, source = setting.default, "default", ""
    if setting.key in in_environment:
        (source, value), origin = in_environment[setting.key], "environment"
    elif setting.key in in_file:
        value, origin, source = in_file[setting.key], "file", str(path)
    return ShownSetting(setting.key, value, origin, source, setting.default, setting.unit, setting.reason)


def from_document(
    document: Table, known: Mapping[str, Setting], sections: tuple[str, ...], where: str
) -> dict[str, Plain]:
    """Checked values by key.

    Raises:
        InvalidRequest: an unknown key or section, or a value that is none of its setting's.
    """
    values: dict[str, Plain] = {}
    for key, value in _leaves(document, "", sections, where):
        refuse_unknown(key, known, where)
        values[key] = checked(known[key], value, where=where)
    return values


def _leaves(table: Table, above: str, sections: tuple[str, ...], where: str) -> Iterator[tuple[str, object]]:
    """Keys with values in a table, without the version and without sections that are not asked for."""
    for name, value in table.items():
        key = f"{above}{name}"
        if key in SECTIONS and not isinstance(value, dict):
            raise InvalidRequest(f"{where}{key} is not a table; write [{key}]")
        if key in SECTIONS and isinstance(value, dict):
            if any(each == key or each.startswith(f"{key}.") for each in sections):
                yield from _leaves(value, f"{key}.", sections, where)
        elif key != "version":
            yield key, value


def from_environment(
    environ: Environ, known: Mapping[str, Setting], sections: tuple[str, ...]
) -> dict[str, tuple[str, Plain]]:
    """(variable, checked value) by key.

    Raises:
        InvalidRequest: a variable that names no setting, or a value that is none of its setting's.
    """
    values: dict[str, tuple[str, Plain]] = {}
    for variable, words in environ.items():
        if variable.startswith(PREFIX) and "__" in variable:
            key = variable.removeprefix(PREFIX).lower().replace("__", ".")
            section = key.rpartition(".")[0]
            if section in SECTIONS and section not in sections:
                continue
            refuse_unknown(key, known, f"{variable}: ")
            values[key] = (variable, checked(known[key], words, is_words=True, where=f"{variable}: "))
    for key, variable in FLAG_VARIABLES.items():
        if key in known and environ.get(variable):
            values[key] = (variable, checked(known[key], environ[variable], is_words=True, where=f"{variable}: "))
    return values


def read_node_table(path: Path, environ: Environ) -> dict[str, object]:
    """What file and environment say of `[node]`, with `[node.guest]` as `guest` and `[telemetry.mqtt]` as `mqtt`.

    Raises:
        InvalidRequest: as `effective`; or telemetry without a broker.
    """
    table: dict[str, object] = {}
    guest: dict[str, object] = {}
    mqtt: dict[str, object] = {}
    owners = {"node": table, "node.guest": guest, "telemetry.mqtt": mqtt}
    for each in effective(path, environ, ("node", "node.guest", "telemetry", "telemetry.mqtt")):
        section, _, name = each.key.rpartition(".")
        if each.origin != "default" and not (each.value is None and each.key in ("node.model", "telemetry.mqtt.host")):
            owners[section][name] = each.value
    if mqtt and "host" not in mqtt:
        raise InvalidRequest("telemetry.mqtt.host is missing: which broker?")
    return {**table, **({"guest": guest} if guest else {}), **({"mqtt": mqtt} if mqtt else {})}


def flag_defaults(verb: str, path: Path, environ: Environ) -> dict[str, object]:
    """Defaults of a client verb's flags, by parameter, from environment and file; what nobody said is left out.

    Raises:
        InvalidRequest: as `effective`.
    """
    sections = ("client", "serve") if verb == "serve" else ("client",)
    said = {each.key: each.value for each in effective(path, environ, sections) if each.origin != "default"}
    names = {key: key.rpartition(".")[2] for key in said}
    return {OPTION_NAMES.get(names[key], names[key]): value for key, value in said.items() if value is not None}
