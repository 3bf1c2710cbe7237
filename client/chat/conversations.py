"""Saved conversations: one JSON file each, readable by their owner only, written so that a crash leaves the old one.

Knows no screen and no model. The directory is handed in; the CLI says which (platformdirs' data directory).
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from shoal.client.chat.backend import ROLES, ChatMessage
from shoal.protocol.errors import InvalidRequest

FORMAT_VERSION = 1

MAX_FILE_BYTES = 16 << 20
"""A thousand long answers; a file over this is not ours."""

MAX_TITLE_CHARS = 60
"""What a list at 80 columns can show."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said. `id`: the file's name without its suffix."""

    id: str
    messages: tuple[ChatMessage, ...] = ()
    system_prompt: str = ""
    model: str = ""
    updated_s: float = 0.0
    """Unix time of the last change."""

    @property
    def title(self) -> str:
        """The first line of the first question."""
        asked = (message.content for message in self.messages if message.role == "user")
        line = next(asked, "").strip().partition("\n")[0]
        return line if len(line) <= MAX_TITLE_CHARS else line[: MAX_TITLE_CHARS - 1] + "…"

    def as_prompt(self) -> tuple[ChatMessage, ...]:
        """The messages that a model is given."""
        system = (ChatMessage("system", self.system_prompt),) if self.system_prompt else ()
        return system + self.messages


def new_id() -> str:
    """A name for a new conversation: random, because a time would tell when it was held."""
    return os.urandom(8).hex()


class ConversationStore:
    """The conversations of one directory. Blocking, and quick: a file is a few kilobytes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def save(self, conversation: Conversation) -> None:
        """Write, replacing what was there at once or not at all. The file is 0600, its directory 0700.

        Raises:
            OSError: the disk is full or the directory cannot be written.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(conversation.id)
        unfinished = path.with_suffix(".tmp")
        fields = {"version": FORMAT_VERSION, **asdict(conversation)}
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o600)  # an unfinished file of a crash may have had another mode
            json.dump(fields, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(descriptor)
        unfinished.replace(path)

    def load(self, conversation_id: str) -> Conversation:
        """Read one.

        Raises:
            InvalidRequest: no such conversation, or not a file of ours.
        """
        path = self._path(conversation_id)
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise InvalidRequest(f"{path} is too large for a conversation")
            fields = json.loads(path.read_text(encoding="utf-8"))
            return _conversation(fields, conversation_id)
        except FileNotFoundError:
            raise InvalidRequest(f"there is no conversation {conversation_id}") from None
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidRequest(f"{path} is not a saved conversation: {error}") from error

    def all(self) -> list[Conversation]:
        """All that can be read, the latest first; files that cannot be read are left alone."""
        found = []
        for path in self._directory.glob("*.json"):
            with suppress(InvalidRequest, OSError):
                found.append(self.load(path.stem))
        return sorted(found, key=lambda conversation: -conversation.updated_s)

    def delete(self, conversation_id: str) -> None:
        """Remove one; no harm if it is gone."""
        self._path(conversation_id).unlink(missing_ok=True)

    def _path(self, conversation_id: str) -> Path:
        if not conversation_id.isalnum() or not conversation_id.isascii():
            raise InvalidRequest(f"{conversation_id!r} is no name of a conversation")
        return self._directory / f"{conversation_id}.json"


def _conversation(fields: Mapping[str, object], conversation_id: str) -> Conversation:
    if fields.get("version") != FORMAT_VERSION:
        raise ValueError(f"version {fields.get('version')!r}, expected {FORMAT_VERSION}")
    messages = fields["messages"]
    updated_s = fields["updated_s"]
    if not isinstance(messages, list) or not isinstance(updated_s, int | float):
        raise ValueError("messages or time are missing")
    return Conversation(
        conversation_id,
        tuple(_message(each) for each in messages),
        _text(fields, "system_prompt"),
        _text(fields, "model"),
        float(updated_s),
    )


def _message(fields: Mapping[str, object]) -> ChatMessage:
    message = ChatMessage(_text(fields, "role"), _text(fields, "content"), _text(fields, "reasoning"))
    if message.role not in ROLES:
        raise ValueError(f"a message by {message.role!r}")
    return message


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text")
    return value
