"""What a user may set on the settings screen, kept in a small TOML file of ours between two runs."""

import json
import os
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from shoal.client.chat.backend import ChatOptions
from shoal.protocol.errors import InvalidRequest

HEAT_STYLES = ("blocks", "glyphs", "digits")


@dataclass(frozen=True, slots=True)
class Preferences:
    """One user's choices. Empty `theme`: the default, or mono where NO_COLOR is set."""

    theme: str = ""
    heat_style: str = ""
    """One of HEAT_STYLES; empty: blocks, or glyphs in the mono theme."""
    shows_reasoning: bool = False
    """Thoughts begin unfolded."""
    saves_conversations: bool = True
    system_prompt: str = ""
    """Of new conversations."""
    max_tokens: int = ChatOptions().max_tokens
    temperature: float = ChatOptions().temperature
    top_p: float = ChatOptions().top_p
    repetition_penalty: float = ChatOptions().repetition_penalty
    seed: int = -1
    """-1: another answer each time."""
    thinking: bool = False

    def options(self) -> ChatOptions:
        """How answers are made."""
        return ChatOptions(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed if self.seed >= 0 else None,
            thinking=self.thinking,
        )


def load_preferences(path: Path, defaults: Preferences | None = None) -> Preferences:
    """Read them; `defaults` where there is no file or it says nothing.

    Raises:
        InvalidRequest: not TOML, an unknown key or a value of another type, with the file's name.
    """
    defaults = defaults or Preferences()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return defaults
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path}: {error}") from error
    kinds = {field.name: type(getattr(defaults, field.name)) for field in fields(defaults)}
    for name, value in values.items():
        if name not in kinds:
            raise InvalidRequest(f"{path}: unknown setting {name!r}; known are {', '.join(kinds)}")
        if type(value) is int and kinds[name] is float:
            values[name] = float(value)
        elif type(value) is not kinds[name]:
            raise InvalidRequest(f"{path}: {name} is {value!r}, expected {kinds[name].__name__}")
    return replace(defaults, **values)


def save_preferences(path: Path, preferences: Preferences) -> None:
    """Write them, at once or not at all. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    lines = [f"{name} = {_toml(value)}" for name, value in asdict(preferences).items()]
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("# Written by the settings screen of `shoal chat`.\n" + "\n".join(lines) + "\n")
    unfinished.replace(path)


def _toml(value: object) -> str:
    """TOML's strings, numbers and booleans are JSON's, but for DEL, which JSON leaves bare."""
    return json.dumps(value, ensure_ascii=True).replace("\x7f", "\\u007f")
