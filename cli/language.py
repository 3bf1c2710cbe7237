"""`--lang`: the language of this one call. Taken before anything else, because the help itself is in it."""

from collections.abc import MutableMapping, Sequence

import typer

from shoal.client.translate import SOURCE_LANGUAGE, languages, wished

OPTION = "--lang"


def take_language(arguments: Sequence[str], environment: MutableMapping[str, str]) -> None:
    """Let `--lang sw`, if it stands before the verb, be what the environment says."""
    for index, word in enumerate(arguments):
        if not word.startswith("-") and (index == 0 or arguments[index - 1] != OPTION):
            return
        if word.startswith(OPTION + "="):
            environment["LANGUAGE"] = word.partition("=")[2]
        elif word == OPTION and index + 1 < len(arguments):
            environment["LANGUAGE"] = arguments[index + 1]


def known_language(language: str | None) -> str | None:
    """The language, or the complaint that we do not have it."""
    if language is not None and wished({"LANGUAGE": language}) == SOURCE_LANGUAGE != language.split("_")[0]:
        raise typer.BadParameter(f"{language!r} is none of {', '.join(languages())}")
    return language
