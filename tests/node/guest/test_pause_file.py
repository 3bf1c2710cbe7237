"""The owner's pause outlives the node: written, read again, over when its time has come, and kept when in doubt."""

from pathlib import Path

import pytest

from shoal.node.guest.decision import UserPause
from shoal.node.guest.pause_file import PauseFile

NOW_S = 1_795_348_800.0


def test_a_pause_is_there_again_until_its_time_has_come(tmp_path: Path) -> None:
    PauseFile(tmp_path / "state" / "node.pause.json").write(UserPause(NOW_S + 7200))
    again = PauseFile(tmp_path / "state" / "node.pause.json")
    assert again.read(NOW_S) == UserPause(NOW_S + 7200)
    assert again.read(NOW_S + 7199) == UserPause(NOW_S + 7200)
    assert again.read(NOW_S + 7200) is None


def test_a_pause_without_an_end_stays_until_it_is_ended(tmp_path: Path) -> None:
    kept = PauseFile(tmp_path / "node.pause.json")
    kept.write(UserPause())
    assert kept.read(NOW_S + 10**9) == UserPause()
    kept.write(None)
    assert kept.read(NOW_S) is None
    kept.write(None)  # nothing to forget


def test_who_never_paused_is_not_paused(tmp_path: Path) -> None:
    assert PauseFile(tmp_path / "node.pause.json").read(NOW_S) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"until_s": "soon"}', '{"until_s": true}', '{"until_s": NaN}', "\xff"]
)
def test_a_file_that_can_not_be_read_is_a_pause(tmp_path: Path, text: str) -> None:
    path = tmp_path / "node.pause.json"
    path.write_bytes(text.encode("latin-1"))
    assert PauseFile(path).read(NOW_S) == UserPause()
