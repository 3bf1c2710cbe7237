"""The help of every verb in the user's language: put in when the command line starts, not when verbs are read.

typer keeps what the verbs say in English as they are defined; this walks the finished tree once, before it is run.
Headings that typer itself prints (`Options`, `Usage`) stay as typer has them.
"""

from collections.abc import Iterator
from typing import Protocol

import typer
import typer.core
import typer.main

from shoal.client.translate import _


class Helped(Protocol):
    """A command or a parameter of one."""

    help: str | None


def translated_command(app: typer.Typer) -> typer.core.TyperGroup:
    """The command of an app of several verbs, with all its help translated."""
    command = _group(app)
    for owner in _owners(command):
        if owner.help:
            owner.help = _(owner.help)
    return command


def help_texts(app: typer.Typer) -> list[str]:
    """All texts that `translated_command` looks up, each once."""
    return list(dict.fromkeys(owner.help for owner in _owners(_group(app)) if owner.help))


def _group(app: typer.Typer) -> typer.core.TyperGroup:
    command = typer.main.get_command(app)
    if not isinstance(command, typer.core.TyperGroup):
        raise TypeError(f"an app of several verbs is needed, not {type(command).__name__}")
    return command


def _owners(command: typer.core.TyperGroup | typer.core.TyperCommand) -> Iterator[Helped]:
    """The command, its parameters, and those of its verbs."""
    yield command
    yield from (each for each in command.params if isinstance(each, typer.core.TyperOption | typer.core.TyperArgument))
    if isinstance(command, typer.core.TyperGroup):
        for verb in command.commands.values():
            if isinstance(verb, typer.core.TyperGroup | typer.core.TyperCommand):
                yield from _owners(verb)
