"""`shoal plan`: machines of a file, what they would give, and when no swarm is needed.

Run: pytest tests/simulations/forecast/test_plan.py
"""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.protocol.errors import InvalidRequest
from shoal.simulations.demo_model import MODEL_DIRECTORY
from shoal.simulations.forecast.compute import shipped_calibration
from shoal.simulations.forecast.machines_file import read_machines
from shoal.simulations.forecast.plan import OneMore, PlanReport, make_plan, plan_lines
from shoal.simulations.forecast.plan_inputs import PlanWords, from_file, from_swarm
from tools.schemas import schema_of

LAB = {
    "peers": [
        {"name": "desktop", "count": 50, "memory_gb": 13.6, "rtt_ms": 0.3, "read_gb_per_s": 40, "up_mbit_per_s": 1000}
    ],
    "trunk": {"memory_gb": 24, "read_gb_per_s": 700, "multiply_tflop_per_s": 40},
}


def written(folder: Path, words: object) -> Path:
    path = folder / "machines.json"
    path.write_text(json.dumps(words), encoding="utf-8")
    return path


def planned(folder: Path, words: object, model: Path | None = None, weights: str | None = "int4_g128") -> PlanReport:
    trunk_format = "dense" if model else "int4_g128"
    said = PlanWords(model, weights, trunk_format, (1, 8), shipped_calibration())
    return make_plan(from_file(said, written(folder, words)))


def test_a_room_of_desktops_gets_a_forecast_with_a_limit_and_its_data(tmp_path: Path) -> None:
    report = planned(tmp_path, LAB)
    assert report.missing_experts == 0
    assert not report.alone.fits
    assert [row.streams for row in report.streams] == [1, 8]
    assert report.streams[0].limit == "expert compute"
    assert report.down_mb_per_1000_tokens is not None
    assert report.down_mb_per_1000_tokens > 58 * 7168 * 4 / 1000  # at least one answer a layer and token
    assert set(report.one_more.tokens_per_s) == {1, 8}
    values = json.loads(json.dumps(msgspec.to_builtins(report)))
    Draft202012Validator(json.loads(schema_of("plan"))).validate(values)
    assert "limited by expert compute" in "\n".join(plan_lines(report))


def test_one_more_machine_is_told_as_a_change(tmp_path: Path) -> None:
    report = planned(tmp_path, LAB)
    report = replace(
        report, one_more=OneMore(0.5, 0, {each.streams: 1.5 * each.tokens_per_s for each in report.streams})
    )
    [line] = [line for line in plan_lines(report) if line.startswith("one more machine of 500 MB")]
    assert line.count("(+50%)") == 2
    assert line.endswith("tokens/s in all with 1, 8 streams")


def test_links_that_nobody_knows_are_named_and_one_s_own_can_be_said(tmp_path: Path) -> None:
    machines = written(tmp_path, {"peers": [{"count": 2, "memory_gb": 1, "rtt_ms": 5}]})
    words = PlanWords(MODEL_DIRECTORY, None, "dense", (1,), shipped_calibration())
    unknown = make_plan(from_file(words, machines))
    said = "\n".join(plan_lines(unknown))
    assert (unknown.unknown_links, unknown.is_own_link_known) == (2, False)
    assert "the links of 2 machines are not known" in said
    assert "--up and --down" in said
    slow = make_plan(from_file(replace(words, up_mbit_per_s=1.0, down_mbit_per_s=100.0), machines))
    assert slow.is_own_link_known
    assert slow.streams[0].limit == "uplink"
    assert slow.streams[0].tokens_per_s < unknown.streams[0].tokens_per_s
    assert "--up" not in "\n".join(plan_lines(slow))


def test_too_few_machines_say_how_many_experts_are_missing_and_what_one_more_changes(tmp_path: Path) -> None:
    few = {**LAB, "peers": [{"count": 20, "memory_gb": 13.6, "rtt_ms": 0.3}]}
    report = planned(tmp_path, few)
    assert report.streams == ()
    assert report.missing_experts > report.one_more.missing_experts > 0
    assert "no place" in "\n".join(plan_lines(report))


def test_a_trunk_without_room_is_said(tmp_path: Path) -> None:
    report = planned(tmp_path, {**LAB, "trunk": {"memory_gb": 8}})
    assert not report.trunk_fits
    assert "--trunk-format" in "\n".join(plan_lines(report))


def test_a_model_that_fits_one_machine_needs_no_swarm(tmp_path: Path) -> None:
    far = {"peers": [{"count": 2, "memory_gb": 1, "rtt_ms": 50}], "trunk": {"memory_gb": 4}}
    report = planned(tmp_path, far, MODEL_DIRECTORY, None)
    assert report.alone.fits
    assert report.alone.tokens_per_s is not None
    assert report.alone.tokens_per_s > report.streams[0].tokens_per_s
    assert report.streams[0].limit == "RTT"
    assert "needs no swarm" in "\n".join(plan_lines(report))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ({"peers": [{"memory_gb": 1, "rtt_ms": 1, "colour": 1}]}, "colour"),
        ({"peers": [{"memory_gb": -1, "rtt_ms": 1}]}, "memory_gb"),
        ({"peers": [{"memory_gb": 1, "rtt_ms": -1}]}, "rtt_ms"),
        ({"peers": []}, "1..10000"),
        ({"peers": [{"memory_gb": 1, "rtt_ms": 1, "count": 10_001}]}, "1..10000"),
        ({"peers": [{"memory_gb": 1, "rtt_ms": 1}], "trunk": {"up_mbit_per_s": 0}}, "trunk host"),
        ([], "names no machines"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_its_key(tmp_path: Path, words: object, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        read_machines(written(tmp_path, words), shipped_calibration(), 10**10)


def test_weights_that_nobody_knows_and_a_swarm_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="int5"):
        planned(tmp_path, LAB, weights="int5")
    said = PlanWords(None, None, "int4_g128", (1,), shipped_calibration())
    with pytest.raises(InvalidRequest, match="--model"):
        asyncio.run(from_swarm(said, ("nowhere",)))


def test_the_command_prints_what_its_schema_says(tmp_path: Path) -> None:
    path = written(tmp_path, LAB)
    words = ["plan", "--peers", str(path), "--weights", "int4_g128", "--trunk-format", "int4_g128", "--streams", "1"]
    said = CliRunner().invoke(app, [*words, "--json"])
    assert said.exit_code == 0, said.output
    Draft202012Validator(json.loads(schema_of("plan"))).validate(json.loads(said.stdout))
    assert CliRunner().invoke(app, ["plan"]).exit_code == 2
