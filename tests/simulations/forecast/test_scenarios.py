"""Named swarms: machines, who holds what, hours that pass, and the report of it all.

Run: pytest tests/simulations/forecast/test_scenarios.py
"""

import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from shoal.cli.simulate import simulate_app
from shoal.experts.family import model_spec
from shoal.node.holdings.nearness import reads_s
from shoal.node.holdings.placement import FAR, Around, Layout
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.ids import PeerId
from shoal.simulations.forecast.churn import Lifetimes, Population, coverage_over_time, lifetime_s
from shoal.simulations.forecast.compute import shipped_calibration
from shoal.simulations.forecast.deepseek_v3 import DEEPSEEK_V3
from shoal.simulations.forecast.geography import City, distance_km, path_ms
from shoal.simulations.forecast.placement import Placement
from shoal.simulations.forecast.plots import write_plots
from shoal.simulations.forecast.routing import draw_routes
from shoal.simulations.forecast.scenarios import SCENARIOS, draw_machines, scenario_named
from shoal.simulations.forecast.simulate import SimulationSettings, simulate
from shoal.simulations.forecast.words import report_lines
from tools.schemas import schema_of

ROUTER = model_spec(DEEPSEEK_V3).router


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def test_tokens_choose_as_recorded_and_keep_the_groups_limit() -> None:
    routes, rng = draw_routes(ROUTER, 8, np.random.default_rng(1)), np.random.default_rng(2)
    spreads, hottest, groups = [], [], []
    for layer in range(8):
        chosen = routes.draw(layer, 4000, rng)
        assert chosen.shape == (4000, 8)
        assert all(len(set(row)) == 8 and len({expert // 32 for expert in row}) <= 4 for row in chosen[:200].tolist())
        load = np.bincount(chosen.ravel(), minlength=256) + 0.5
        spreads.append(np.log(load / load.mean()).std())
        hottest.append(load.max() / load.mean())
        groups.append(load.reshape(8, 32).sum(1).max() / load.mean() / 32)
    assert 0.5 < np.median(spreads) < 0.8  # recorded: 0.56 to 0.68
    assert 3.0 < np.median(hottest) < 7.0  # 5.2 to 5.8
    assert 1.2 < np.median(groups) < 2.2  # 1.5 to 2.0


def test_nodes_fill_the_rarest_first_and_ten_of_them_hold_ten_times_as_much() -> None:
    placement = Placement(ROUTER, 58)
    counts = placement.nobody()
    holdings = placement.fill(counts, [598] * 25, [PeerId(f"peer-{i}") for i in range(25)], silent)
    assert counts.sum() == 25 * 598 == sum(map(len, holdings))
    assert (counts > 0).mean() > 0.95
    (scattered,) = placement.fill(placement.nobody(), [592], [PeerId("a")], silent, [Around(Layout.MANY_LAYERS)])
    assert len(scattered) == 592
    assert len(set((scattered // 256).tolist())) == 18, "groups of many layers"


def test_nodes_of_a_room_spread_and_nodes_of_homes_do_not() -> None:
    for name, layout in (("lab", Layout.MANY_LAYERS), ("three-labs", Layout.MANY_LAYERS), ("metro", Layout.FEW_LAYERS)):
        around = draw_machines(scenario_named(name, None), 0).around(reads_s(ROUTER, 23_000_000))
        assert {each.layout for each in around} == {layout}
        assert len({each.zone for each in around}) == (3 if name == "three-labs" else 1)


def test_nobody_leaves_a_swarm_that_stays_for_ever() -> None:
    placement = Placement(ROUTER, 58)
    counts = placement.nobody()
    holdings = placement.fill(counts, [598] * 30, [PeerId(f"peer-{i}") for i in range(30)], silent)
    still = Population([598] * 30, [60.0] * 30, Lifetimes.FOREVER, [FAR] * 30)
    rows = coverage_over_time(counts, holdings, still, placement, 5, np.random.default_rng(0))
    assert [row.nodes for row in rows] == [30] * 6
    assert len({row.covered for row in rows}) == 1


def test_a_swarm_of_passers_by_has_gaps_and_its_counts_stay_true() -> None:
    placement = Placement(ROUTER, 58)
    counts = placement.nobody()
    holdings = placement.fill(counts, [598] * 30, [PeerId(f"peer-{i}") for i in range(30)], silent)
    casual = Population([598] * 30, [600.0] * 30, Lifetimes.CASUAL, [FAR] * 30)
    rows = coverage_over_time(counts, holdings, casual, placement, 12, np.random.default_rng(0))
    assert min(row.covered for row in rows) < 1
    assert counts.min() >= 0
    assert counts.sum() == 598 * rows[-1].nodes
    again = placement.nobody()
    holdings = placement.fill(again, [598] * 30, [PeerId(f"peer-{i}") for i in range(30)], silent)
    assert coverage_over_time(again, holdings, casual, placement, 12, np.random.default_rng(0)) == rows


@pytest.mark.parametrize(("kind", "hours"), [(Lifetimes.STABLE, 40.9), (Lifetimes.ANCHOR, 168.0)])
def test_lifetimes_have_the_mean_of_their_fit(kind: Lifetimes, hours: float) -> None:
    rng = np.random.default_rng(0)
    mean_h = np.mean([lifetime_s(kind, rng) for _ in range(20_000)]) / 3600
    assert mean_h == pytest.approx(hours, rel=0.1)


def test_far_cities_are_far_and_a_pair_has_one_round_trip() -> None:
    lagos, paris = City("Lagos", "NG", "AF", 6.5, 3.4), City("Paris", "FR", "EU", 48.9, 2.4)
    assert distance_km(lagos, paris) == pytest.approx(4700, rel=0.02)
    assert path_ms(lagos, paris, 0) == path_ms(paris, lagos, 0)
    assert path_ms(lagos, paris, 0) != path_ms(paris, lagos, 1)
    assert 47 < np.median([path_ms(lagos, paris, seed) for seed in range(99)]) < 250


@pytest.mark.parametrize(("name", "rtt_ms"), [("lab", 0.3), ("three-labs", 20.3)])
def test_rooms_are_as_far_apart_as_they_say(name: str, rtt_ms: float) -> None:
    machines = draw_machines(scenario_named(name, None), 0)
    first, second = machines.peers[0], machines.peers[1]
    assert machines.between_s(first, second) * 1000 == pytest.approx(rtt_ms)
    assert max(peer.rtt_s for peer in machines.peers) * 1000 == pytest.approx(rtt_ms)


def test_a_scenario_without_a_name_or_with_too_many_nodes_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="three-labs"):
        scenario_named("village", None)
    with pytest.raises(InvalidRequest, match="10000"):
        scenario_named("lab", 10_001)


def test_a_report_is_complete_fits_its_schema_and_repeats() -> None:
    settings, calibration = SimulationSettings(scenario_named("lab", None), hours=2), shipped_calibration()
    report = simulate(settings, calibration, silent)
    values = json.loads(json.dumps(msgspec.to_builtins(report)))
    Draft202012Validator(json.loads(schema_of("simulate-virtual"))).validate(values)
    assert [row.streams for row in report.streams] == [1, 8, 32]
    assert report.speed.calls > 1000
    assert report.pipeline is not None
    assert report.pipeline.tokens_per_s is not None
    lines = list(report_lines(report))
    assert lines[1].startswith(f"IT GIVES {report.streams[0].tokens_per_s:.2f} tokens/s to one stream")
    assert lines[2].startswith("A layer pipeline on the same machines would give")
    text = "\n".join(lines)
    assert "limited by" in text
    assert "calls/s per core" in text
    again = simulate(settings, calibration, silent)
    assert replace(again, speed=report.speed) == report


def test_a_swarm_that_is_too_small_says_so_and_nothing_of_speed() -> None:
    report = simulate(SimulationSettings(scenario_named("metro", 20), hours=1), shipped_calibration(), silent)
    assert report.missing_experts > 0
    assert report.streams == ()
    assert "CANNOT ANSWER" in list(report_lines(report))[1]


def test_plots_are_written_or_matplotlib_is_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    report = simulate(SimulationSettings(scenario_named("metro", 20), hours=1), shipped_calibration(), silent)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        with pytest.raises(InvalidRequest, match="shoal\\[plots\\]"):
            write_plots(report, tmp_path)
    else:
        (path,) = write_plots(report, tmp_path)
        assert path.read_bytes().startswith(b"\x89PNG")


def test_all_scenarios_have_cities_with_countries_and_draw_what_they_say() -> None:
    for scenario in SCENARIOS.values():
        assert len(draw_machines(scenario, 0).peers) == scenario.num_nodes


def test_the_mode_may_be_said_as_a_flag() -> None:
    said = CliRunner().invoke(simulate_app, ["--virtual", "20", "--scenario", "metro", "--hours", "1", "--json"])
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["nodes"] == 20
