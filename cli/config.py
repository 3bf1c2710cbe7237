"""`shoal config`: what the settings are, who said so, and changing one of them."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.boundary import reporting_errors
from shoal.cli.options import JsonOption
from shoal.client.translate import _

if TYPE_CHECKING:
    from shoal.cli.settings_keys import Plain
    from shoal.cli.settings_layers import ShownSetting

config_app = typer.Typer(no_args_is_help=True, help="Show and change the settings: flag, environment, file, default.")

KeyArgument = Annotated[str, typer.Argument(help="E.g. node.guest.monthly_bytes; `shoal config show` lists all.")]


@config_app.command()
def show(
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print every setting as it is now, as TOML; a token is never shown."""
    with reporting_errors():
        from shoal.cli.settings_file import VERSION, settings_path
        from shoal.cli.settings_layers import ShownSettings, effective

        said = [_without_tokens(each) for each in effective(settings_path(), os.environ)]
        if as_json:
            print(json.dumps(asdict(ShownSettings(VERSION, str(settings_path()), tuple(said)))))
        else:
            print("\n".join([f"version = {VERSION}", *(_line(each, origin) for each in said)]))


@config_app.command()
def path() -> None:
    """Print where the settings file is, or would be."""
    from shoal.cli.settings_file import settings_path

    print(settings_path())


@config_app.command()
def get(key: KeyArgument) -> None:
    """Print one setting as it is now."""
    with reporting_errors():
        from shoal.cli.settings_file import settings_path
        from shoal.cli.settings_keys import as_words, known_settings, refuse_unknown
        from shoal.cli.settings_layers import effective

        refuse_unknown(key, known_settings())
        print(next(as_words(_without_tokens(e).value) for e in effective(settings_path(), os.environ) if e.key == key))


@config_app.command("set")
def set_(
    key: KeyArgument,
    value: Annotated[str, typer.Argument(help="E.g. 100GB, true, none; several with commas.")],
) -> None:
    """Write one setting into the file; the others stay. Comments in the file are lost."""
    with reporting_errors():
        from shoal.cli.settings_file import VERSION, read_document, settings_path, write_document
        from shoal.cli.settings_keys import SECTIONS, checked, known_settings, refuse_unknown
        from shoal.cli.settings_layers import from_document

        file, known = settings_path(), known_settings()
        refuse_unknown(key, known)
        _refuse_no_text(key, value)
        plain = checked(known[key], value, is_words=True)
        _refuse_token(key, plain)
        document = read_document(file)
        from_document(document, known, SECTIONS, f"{file}: ")  # a file that is broken is not written over
        write_document(file, with_setting({"version": VERSION, **document}, key, plain))
        print(_("kept in {path}").format(path=file))


@config_app.command()
def unset(key: KeyArgument) -> None:
    """Take one setting out of the file, so that its default holds again. Comments in the file are lost."""
    with reporting_errors():
        from shoal.cli.settings_file import read_document, settings_path, write_document
        from shoal.cli.settings_keys import SECTIONS, known_settings, refuse_unknown
        from shoal.cli.settings_layers import from_document

        file, known = settings_path(), known_settings()
        refuse_unknown(key, known)
        document = read_document(file)
        if key not in from_document(document, known, SECTIONS, f"{file}: "):
            print(_("{key} is not in {path}").format(key=key, path=file), file=sys.stderr)
            return
        write_document(file, without_setting(document, key))
        print(_("taken out of {path}").format(path=file))


def without_setting(table: Mapping[str, object], key: str) -> dict[str, object]:
    """A table without one setting, and without the tables that this leaves empty."""
    name, _dot, rest = key.partition(".")
    below = table.get(name)
    left = without_setting(below, rest) if rest and isinstance(below, dict) else {}
    return {each: (left if each == name else value) for each, value in table.items() if each != name or left}


def with_setting(table: dict[str, object], key: str, value: "Plain") -> dict[str, object]:
    """A table in which one setting is another."""
    from shoal.cli.settings_keys import NONE

    name, _dot, rest = key.partition(".")
    if not rest:
        return {**table, name: NONE if value is None else value}
    below = table.get(name, {})
    return {**table, name: with_setting(below if isinstance(below, dict) else {}, rest, value)}


def _line(setting: "ShownSetting", says_origin: bool) -> str:
    from shoal.cli.settings_file import toml_value
    from shoal.cli.settings_keys import NONE

    line = f"{setting.key} = {toml_value(NONE if setting.value is None else setting.value)}"
    return f"{line}  # {setting.source or setting.origin}" if says_origin else line


def _without_tokens(setting: "ShownSetting") -> "ShownSetting":
    """An invite token lets its reader into a swarm."""
    if setting.key != "node.join" or not isinstance(setting.value, list):
        return setting
    return replace(setting, value=[each if each.startswith("/") else "(token)" for each in setting.value])


def _refuse_token(key: str, value: "Plain") -> None:
    from shoal.protocol.errors import InvalidRequest

    if key == "node.join" and isinstance(value, list) and any(not each.startswith("/") for each in value):
        raise InvalidRequest("node.join takes addresses here; a token belongs into a file of its own: shoal join")


def _refuse_no_text(key: str, words: str) -> None:
    from shoal.protocol.errors import InvalidRequest

    try:
        words.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest(f"{key}: the value is no UTF-8") from None
