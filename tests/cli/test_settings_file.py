"""The settings file and the first run: what is written is read, what is misspelt is refused, four questions at most."""

import io
import sys
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from shoal.cli.first_run import NIGHT, Answers, ask, first_run, measured_defaults
from shoal.cli.options import parse_duration
from shoal.cli.settings_file import node_settings, settings_path, write_node_table
from shoal.cli.settings_layers import read_node_table
from shoal.node.settings import GuestSettings, NodeSettings
from shoal.protocol.errors import InvalidRequest

BASE: dict[str, object] = {"model": "/m"}


def test_a_flag_comes_before_the_file_and_the_file_before_the_default() -> None:
    table = {**BASE, "threads": 3, "port": 7, "guest": {"schedule": "22:00-06:00", "monthly_bytes": "100GB"}}
    settings = node_settings(table, {"threads": 5, "port": None}, {"schedule": None, "idle_only": True})
    assert (settings.model, settings.threads, settings.port, settings.host) == (Path("/m"), 5, 7, "127.0.0.1")
    assert settings.guest == GuestSettings(schedule="22:00-06:00", monthly_bytes=100 * 10**9, idle_only=True)


def test_without_a_file_everything_is_a_default(tmp_path: Path) -> None:
    assert node_settings({**BASE, **read_node_table(tmp_path / "none", {})}, {}, {}) == NodeSettings(Path("/m"))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"thread": 3}, "node.thread; did you mean threads?"),
        ({"guest": {"up_bytes": 3}}, "did you mean up_bytes_per_s?"),
        ({"guest": {"colour": "red"}}, "known are"),
        ({"guest": 3}, "is not a table"),
        ({"threads": "three"}, "threads"),
        ({"guest": {"idle_only": 1}}, "idle_only"),
        ({"share_bytes": "a lot"}, "is no size"),
    ],
)
def test_a_limit_that_is_misspelt_is_no_limit_and_is_refused(table: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        node_settings({**BASE, **table}, {}, {})
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["node = 3\n", "[node\n", "\x00"])
def test_what_is_no_settings_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "shoal.toml"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=r"shoal\.toml"):
        read_node_table(file, {})


@given(
    share=st.integers(0, 2**50), up=st.none() | st.integers(1, 2**40), idle=st.booleans(),
    schedule=st.sampled_from(["", NIGHT, "mon-fri 18:00-08:00, sat-sun 00:00-24:00"]),
)  # fmt: skip
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, share: int, up: int | None, idle: bool, schedule: str
) -> None:
    file = tmp_path_factory.mktemp("settings") / "shoal.toml"
    guest = {"up_bytes_per_s": up, "idle_only": idle, "schedule": schedule}
    write_node_table(file, {"share_bytes": share}, guest)
    settings = node_settings({**BASE, **read_node_table(file, {})}, {}, {})
    expected = GuestSettings(up_bytes_per_s=up, idle_only=idle, schedule=schedule)
    assert (settings.share_bytes, settings.guest) == (share, expected)


def test_four_questions_are_asked_and_enter_takes_the_defaults() -> None:
    asked: list[str] = []

    def enter(question: str, default: str) -> str:
        asked.append(question)
        return default

    defaults = Answers(share_bytes=4 * 10**9)
    assert ask(defaults, enter, can_see_input=True) == defaults
    assert len(asked) == 4
    assert "idle" in asked[3]


@pytest.mark.parametrize(
    ("when", "expected"),
    [("idle", (True, "")), ("night", (False, NIGHT)), ("18:00-08:00", (False, "18:00-08:00")), ("always", (False, ""))],
)
def test_answers_are_kept_as_they_are_meant(when: str, expected: tuple[bool, str]) -> None:
    words = iter(["2GB", "500KB", "100GB", when])
    answers = ask(Answers(1), lambda question, default: next(words), can_see_input=False)
    limits = (answers.share_bytes, answers.up_bytes_per_s, answers.monthly_bytes)
    assert limits == (2 * 10**9, 500_000, 100 * 10**9)
    assert (answers.idle_only, answers.schedule) == expected


@pytest.fixture
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return settings_path()


def test_nobody_is_asked_without_a_terminal_and_the_defaults_are_said_and_not_kept(
    own_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first_run(is_yes=False, is_share_given=False)
    said = capsys.readouterr().err
    assert said.startswith("shoal: limits: memory ")
    assert said.endswith("always, at low priority (defaults; nobody to ask)\n")
    assert not own_config.exists()


def test_yes_takes_the_measured_defaults_and_keeps_them_once(
    own_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first_run(is_yes=True, is_share_given=False)
    settings = node_settings({**BASE, **read_node_table(own_config, {})}, {}, {})
    assert settings.share_bytes is not None
    assert 0.2 < settings.share_bytes / measured_defaults().share_bytes < 5
    assert str(own_config) in capsys.readouterr().err
    first_run(is_yes=True, is_share_given=False)
    assert capsys.readouterr().err == ""


def test_the_first_run_adds_to_a_file_that_says_nothing_of_the_node_and_keeps_its_comments(own_config: Path) -> None:
    own_config.parent.mkdir(parents=True)
    own_config.write_text('# mine\n[client]\ndtype = "bf16"\n')
    first_run(is_yes=True, is_share_given=False)
    assert own_config.read_text().startswith('# mine\n[client]\ndtype = "bf16"\n\n[node]\nshare_bytes = ')
    assert "share_bytes" in read_node_table(own_config, {})


@pytest.mark.parametrize(
    ("words", "seconds"), [("2h", 7200), ("1h30m", 5400), ("45s", 45), ("1d", 86_400), ("90min", 5400), (None, None)]
)
def test_durations_have_units(words: str | None, seconds: float | None) -> None:
    assert parse_duration(words) == seconds


@pytest.mark.parametrize("words", ["2", "", "h", "soon", "-1h", "1h 30m", "2h2h"])
def test_what_is_no_duration_is_refused(words: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_duration(words)


def test_telemetry_is_a_table_of_its_own_and_misspelt_names_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "shoal.toml"
    file.write_text('[telemetry.mqtt]\nhost = "127.0.0.1"\ntls = false\nca_file = "/ca.pem"\n')
    mqtt = node_settings({**BASE, **read_node_table(file, {})}, {}, {}).mqtt
    assert mqtt is not None
    assert (mqtt.host, mqtt.tls, mqtt.ca_file) == ("127.0.0.1", False, Path("/ca.pem"))
    file.write_text('[telemetry.mqtt]\nhosst = "127.0.0.1"\n')
    with pytest.raises(InvalidRequest, match="did you mean host"):
        node_settings({**BASE, **read_node_table(file, {})}, {}, {})
    file.write_text('[telemetry.mqqt]\nhost = "127.0.0.1"\n')
    with pytest.raises(InvalidRequest, match="did you mean mqtt"):
        read_node_table(file, {})
    file.write_text('[node.mqtt]\nhost = "127.0.0.1"\n')
    with pytest.raises(InvalidRequest, match=r"telemetry\.mqtt"):
        read_node_table(file, {})
