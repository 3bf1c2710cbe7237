"""`shoal config` and the layers: a flag before the environment before the file before the default, and no guessing."""

import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from shoal.cli import config
from shoal.cli.main import app
from shoal.cli.settings_file import node_settings, read_document, settings_path, write_document
from shoal.cli.settings_keys import Plain, as_words, checked, known_settings
from shoal.cli.settings_layers import FLAG_VARIABLES, effective, flag_defaults, read_node_table
from shoal.client.engine.engine_settings import CHUNKS_PER_PASS, EngineSettings
from shoal.protocol.errors import InvalidRequest
from tools.schemas import schema_of

KNOWN = known_settings()
CHOICES: Mapping[str, list[str]] = {
    "node.kernel": ["auto", "cpu", "cuda", "reference"], "node.log_level": ["debug", "info", "warning", "error"],
    "node.guest.schedule": ["", "22:00-06:00"], "node.guest.time_zone": ["", "UTC"], "client.dtype": ["fp32", "bf16"],
    "client.channel": ["direct", "libp2p"], "client.trunk_format": ["dense", "int4_g32"],
    "client.lan": ["members", "any", "off"], "client.speculate": ["off", "auto"],
    "client.activations": ["exact", "auto"],
}  # fmt: skip
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="~,\0"), min_size=1, max_size=12).filter(
    lambda words: words == words.strip() and words != "none"
)


def values(key: str) -> st.SearchStrategy[Plain]:
    """Values that a setting may have, as they are kept."""
    setting, kind = KNOWN[key], str(KNOWN[key].kind)
    some: st.SearchStrategy[Any]
    if key in CHOICES:
        some = st.sampled_from(CHOICES[key])
    elif "tuple" in kind:
        some = st.lists(WORDS.map(lambda words: f"/{words}"), max_size=3)
    elif "bool" in kind:
        some = st.booleans()
    elif "float" in kind:
        some = st.floats(0.01, 1) if key.endswith("_load") else st.floats(1, 1e12)
    elif key == "client.prefill_ahead":
        some = st.integers(1, 8)
    elif "int" in kind:
        some = st.integers(1, 256 if "serve" in key else 65535 if "port" in key else 2**63 - 1)
    elif key == "node.zone":
        some = st.from_regex(r"[a-z0-9-]{1,16}", fullmatch=True).filter(lambda words: words != "none")
    else:
        some = WORDS.map(lambda words: str(Path(words))) if "Path" in kind else WORDS
    return some | st.none() if setting.takes_none else some


KEYED = st.sampled_from(sorted(KNOWN)).flatmap(lambda key: st.tuples(st.just(key), values(key)))


def variable(key: str) -> str:
    return "SHOAL_" + key.upper().replace(".", "__")


def nested(keyed: Mapping[str, Plain]) -> dict[str, object]:
    document: dict[str, object] = {"version": 1}
    for key, value in keyed.items():
        document = config.with_setting(document, key, value)
    return document


@given(st.lists(KEYED, max_size=8).map(dict), st.lists(KEYED, max_size=8).map(dict))
def test_the_environment_comes_before_the_file_and_the_file_before_the_default(
    tmp_path_factory: pytest.TempPathFactory, in_file: dict[str, Plain], in_environment: dict[str, Plain]
) -> None:
    file = tmp_path_factory.mktemp("config") / "shoal.toml"
    write_document(file, nested(in_file))
    environ = {variable(key): as_words(value) for key, value in in_environment.items()}
    for shown in effective(file, environ):
        if shown.key in in_environment:
            expected = (in_environment[shown.key], "environment", variable(shown.key))
        elif shown.key in in_file:
            expected = (in_file[shown.key], "file", str(file))
        else:
            expected = (KNOWN[shown.key].default, "default", "")
        assert (shown.value, shown.origin, shown.source) == expected, shown.key


@given(KEYED)
def test_what_get_prints_is_what_set_takes(keyed: tuple[str, Plain]) -> None:
    key, value = keyed
    assert checked(KNOWN[key], as_words(value), is_words=True) == value


def test_a_flag_comes_before_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "shoal.toml"
    file.write_text("[node]\nthreads = 1\nport = 1\np2p_port = 1\n")
    table = read_node_table(file, {"SHOAL_NODE__THREADS": "2", "SHOAL_NODE__PORT": "2"})
    settings = node_settings({"model": "/m", **table}, {"threads": 3}, {})
    assert (settings.threads, settings.port, settings.p2p_port) == (3, 2, 1)


def test_the_short_name_of_a_flags_variable_comes_before_the_long_one(tmp_path: Path) -> None:
    environ = {"SHOAL_SHARE": "2GB", "SHOAL_NODE__SHARE_BYTES": "1GB"}
    shown = next(each for each in effective(tmp_path / "none", environ) if each.key == "node.share_bytes")
    assert (shown.value, shown.source) == (2 * 10**9, "SHOAL_SHARE")


def test_the_short_names_are_those_of_the_nodes_flags() -> None:
    group = typer.main.get_command(app)
    flags = group.commands["node"].params  # type: ignore[attr-defined]
    assert {each.envvar for each in flags if each.envvar} == {
        name for key, name in FLAG_VARIABLES.items() if key.startswith("node.")
    }


def test_the_flags_of_client_verbs_have_defaults_from_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "shoal.toml"
    file.write_text('[client]\ndtype = "bf16"\n[serve]\nport = 8123\nallowed_hosts = ["a.example"]\n[node]\nno = 1\n')
    assert flag_defaults("run", file, {}) == {"dtype": "bf16"}
    said = flag_defaults("serve", file, {"SHOAL_SERVE__PORT": "8124"})
    assert said == {"dtype": "bf16", "port": 8124, "allowed_host": ["a.example"]}
    group = typer.main.get_command(app)
    assert set(said) <= {each.name for each in group.commands["serve"].params}  # type: ignore[attr-defined]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for each in ("SHOAL_MODEL", "SHOAL_SHARE", "SHOAL_HOST", "SHOAL_KERNEL"):
        monkeypatch.delenv(each, raising=False)
    return settings_path()


def shoal(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_set_keeps_the_other_keys_and_the_mode_and_leaves_nothing_beside(file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_text('version = 1\n[node]\nthreads = 3\n[telemetry.mqtt]\nhost = "b"\n')
    file.chmod(0o640)
    assert shoal("config", "set", "node.guest.monthly_bytes", "100GB") == (0, f"kept in {file}\n")
    assert read_document(file) == {
        "version": 1, "node": {"threads": 3, "guest": {"monthly_bytes": 10**11}}, "telemetry": {"mqtt": {"host": "b"}},
    }  # fmt: skip
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert list(file.parent.iterdir()) == [file]
    assert shoal("config", "get", "node.guest.monthly_bytes") == (0, "100000000000\n")


def test_set_makes_a_file_that_only_its_owner_reads(file: Path) -> None:
    assert shoal("config", "set", "node.guest.max_temperature_c", "none")[0] == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert shoal("config", "get", "node.guest.max_temperature_c") == (0, "none\n")
    table = read_node_table(file, {})
    assert node_settings({"model": "/m", **table}, {}, {}).guest.max_temperature_c is None


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("node.thread", "3", "did you mean threads?"),
        ("nod.threads", "3", "did you mean node.threads?"),
        ("up_bytes_per_s", "3", "did you mean node.guest.up_bytes_per_s?"),
        ("colour", "red", "known are"),
        ("node.threads", "three", "node.threads"),
        ("node.port", "65536", "node.port"),
        ("node.share_bytes", "9" * 400, "node.share_bytes"),
        ("node.guest.schedule", "25:00-26:00", "node.guest.schedule"),
        ("node.guest.idle_after_s", "nan", "node.guest.idle_after_s"),
        ("node.host", "\udc80", "no UTF-8"),
        ("telemetry.mqtt.period_s", "0.5", "telemetry.mqtt.period_s (in s)"),
        ("client.dtype", "fp64", "fp32|bf16"),
        ("serve.max_running", "0", "serve.max_running"),
        ("serve.api_key", "secret", "the settings have no serve.api_key"),
        ("node.join", "shoal2abc", "shoal join"),
    ],
)
def test_what_is_no_setting_or_no_value_is_refused_and_nothing_is_written(
    file: Path, key: str, value: str, said: str
) -> None:
    status, output = shoal("config", "set", key, value)
    assert (status, said in output) == (2, True), output
    assert not file.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version = 2\n", "update shoal"),
        ("version = true\n", "version = 1"),
        ("[nod]\nport = 1\n", "did you mean node?"),
        ("[serve]\nprot = 1\n", "did you mean port?"),
        ("serve = 3\n", "write [serve]"),
        ("[node.guest]\nidle_only = 1\n", "node.guest.idle_only"),
        ("[node.guest]\nidle_after_s = inf\n", "finite"),
        ("[node\n", "no TOML"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_every_verb_and_not_written_over(file: Path, text: str, said: str) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(text)
    for arguments in (["show"], ["get", "node.port"], ["set", "node.port", "1"]):
        status, output = shoal("config", *arguments)
        assert (status, said in output, str(file) in output) == (2, True, True), output
    assert file.read_text() == text


@pytest.mark.parametrize("name", ["SHOAL_NODE__THREDS", "SHOAL_NOD__THREADS"])
def test_a_variable_that_is_misspelt_is_refused_with_a_suggestion(
    file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "3")
    status, output = shoal("config", "show")
    assert (status, name in output, "did you mean" in output) == (2, True, True)


def test_show_prints_toml_that_can_be_the_file(file: Path, tmp_path: Path) -> None:
    assert shoal("config", "set", "serve.cors_origins", "https://a.example,https://b.example")[0] == 0
    status, output = shoal("config", "show", "--origin")
    assert (status, f"# {file}" in output, "# default" in output) == (0, True, True)
    copy = tmp_path / "copy.toml"
    copy.write_text(output)
    before = {each.key: each.value for each in effective(file, {})}
    assert {each.key: each.value for each in effective(copy, {})} == before


def test_show_as_json_follows_its_schema_with_unit_and_reason_of_each(file: Path) -> None:
    status, output = shoal("config", "show", "--json")
    said = json.loads(output)
    Draft202012Validator(json.loads(schema_of("config-show"))).validate(said)
    assert (status, said["path"]) == (0, str(file))
    settings = {each["key"]: each for each in said["settings"]}
    assert settings["node.guest.idle_after_s"]["unit"] == "s"
    assert [key for key, each in settings.items() if not each["reason"]] == []
    assert math.isclose(settings["telemetry.mqtt.period_s"]["default"], 30.0)


def test_a_token_is_never_shown(file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_text('[node]\njoin = ["/ip4/127.0.0.1/tcp/1", "shoal2SECRET"]\n')
    for arguments in (["show"], ["show", "--json"], ["get", "node.join"]):
        assert "SECRET" not in shoal("config", *arguments)[1]


def test_path_prints_where_the_file_is(file: Path) -> None:
    assert shoal("config", "path") == (0, f"{file}\n")


def test_telemetry_without_a_broker_is_refused_by_key(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"telemetry\.mqtt\.host"):
        read_node_table(tmp_path / "none", {"SHOAL_TELEMETRY__MQTT__TLS": "false"})


def test_a_broken_file_ends_a_client_verb_before_it_begins(file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.write_text("[client]\ndtyp = 1\n")
    status, output = shoal("run", "Once")
    assert (status, "did you mean dtype?" in output) == (2, True)


@given(st.lists(KEYED, min_size=1, max_size=8).map(dict))
def test_what_is_unset_is_as_if_it_had_never_been_set(keyed: dict[str, Plain]) -> None:
    key, *_ = keyed
    without = {each: value for each, value in keyed.items() if each != key}
    assert config.without_setting(nested(keyed), key) == nested(without)


def test_unset_takes_one_setting_out_of_the_file_and_says_if_there_was_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for key, value in (("node.threads", "3"), ("node.guest.idle_only", "true")):
        assert CliRunner().invoke(app, ["config", "set", key, value]).exit_code == 0
    assert CliRunner().invoke(app, ["config", "unset", "node.guest.idle_only"]).exit_code == 0
    assert read_document(settings_path()) == {"version": 1, "node": {"threads": 3}}
    again = CliRunner().invoke(app, ["config", "unset", "node.guest.idle_only"])
    assert (again.exit_code, "is not in" in again.stderr) == (0, True)
    wrong = CliRunner().invoke(app, ["config", "unset", "node.thread"])
    assert (wrong.exit_code, "did you mean" in wrong.stderr) == (2, True)


def test_the_versions_are_what_their_schema_says() -> None:
    done = CliRunner().invoke(app, ["version", "--json"])
    said = json.loads(done.stdout)
    Draft202012Validator(json.loads(schema_of("version"))).validate(said)
    assert CliRunner().invoke(app, ["version"]).stdout.startswith(f"shoal {said['shoal']} ")


def test_as_many_chunks_of_a_prompt_are_under_way_as_a_pass_has_at_most_and_the_flag_means_the_setting() -> None:
    setting = KNOWN["client.prefill_ahead"]
    assert [checked(setting, value) for value in (1, CHUNKS_PER_PASS)] == [1, CHUNKS_PER_PASS]
    for value in (0, CHUNKS_PER_PASS + 1):
        with pytest.raises(InvalidRequest, match="prefill_ahead"):
            checked(setting, value)
    for verb in ("run", "serve", "chat"):
        assert "--prefill-ahead" in CliRunner().invoke(app, [verb, "--help"]).output
    assert setting.default == EngineSettings().prefill_ahead
