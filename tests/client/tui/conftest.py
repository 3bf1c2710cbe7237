"""Runs a test's coroutine; every world's files are under the test's own directory."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest

Run = Callable[[Coroutine[None, None, None]], None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run to the end, in a loop of its own, with nothing of the user's environment in sight."""
    for name in ("NO_COLOR", "TEXTUAL_ANIMATIONS", "LANGUAGE", "LC_ALL", "LANG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANGUAGE", "en")
    return asyncio.run
