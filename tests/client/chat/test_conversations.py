"""Saved conversations: private, whole, and never lost to a crash."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.client.chat.backend import ChatMessage
from shoal.client.chat.conversations import Conversation, ConversationStore, new_id
from shoal.protocol.errors import InvalidRequest

TALK = Conversation(
    "abc123",
    (ChatMessage("user", "What is a shoal?\nTell me."), ChatMessage("assistant", "Fish — 🐟", "hm")),
    "Be brief.",
    "model",
    12.5,
)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path / "talks")
    store.save(TALK)
    assert store.load("abc123") == TALK


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path / "talks")
    old_mask = os.umask(0)
    try:
        store.save(TALK)
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE((tmp_path / "talks" / "abc123.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "talks").stat().st_mode) == 0o700


def test_a_write_that_fails_leaves_the_old_conversation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ConversationStore(tmp_path)
    store.save(TALK)

    def full_disk(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        store.save(replace(TALK, messages=()))
    assert store.load("abc123") == TALK


def test_the_list_has_the_latest_first_and_leaves_foreign_files_alone(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path)
    store.save(TALK)
    store.save(replace(TALK, id="def456", updated_s=99.0))
    (tmp_path / "foreign.json").write_text("{}")
    (tmp_path / "broken.json").write_text('{"version": 1, "messages": 5}')
    assert [each.id for each in store.all()] == ["def456", "abc123"]
    assert (tmp_path / "foreign.json").exists()


def test_no_name_leads_out_of_the_directory(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path)
    for name in ("../secret", "a/b", "", ".hidden"):
        with pytest.raises(InvalidRequest, match="no name of a conversation"):
            store.load(name)


def test_a_deleted_conversation_is_gone(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path)
    store.save(TALK)
    store.delete("abc123")
    store.delete("abc123")
    with pytest.raises(InvalidRequest, match="there is no conversation"):
        store.load("abc123")


def test_the_title_is_the_first_line_of_the_first_question() -> None:
    assert TALK.title == "What is a shoal?"
    assert len(replace(TALK, messages=(ChatMessage("user", "x" * 500),)).title) == 60


def test_the_system_prompt_comes_first_and_thoughts_are_not_sent_back() -> None:
    plain = [message.as_plain() for message in TALK.as_prompt()]
    assert plain[0] == {"role": "system", "content": "Be brief."}
    assert plain[2] == {"role": "assistant", "content": "Fish — 🐟"}


def test_ids_are_names_of_files() -> None:
    assert new_id().isalnum()
    assert new_id() != new_id()
