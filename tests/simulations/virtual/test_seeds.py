"""A thousand bad days, and every token is right."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.client.engine.engine_settings import PREFILL_CHUNK
from shoal.simulations.bench.machine import num_usable_cores
from shoal.simulations.virtual.faults import TRANSIENT, Kind
from shoal.simulations.virtual.model import SimulatedModel
from shoal.simulations.virtual.run import LONG_PROMPT, LUCK, WIDEST_DRAFT, Oracle, draw_setup, run_seed
from shoal.simulations.virtual.soak import demo_model_in_memory, soak
from tests.simulations.virtual.planted_bugs import PLANTED_BUGS, PlantedBug

NUM_SEEDS = 1000
SEEDS_PER_BUG = 300


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedModel]:
    with demo_model_in_memory(tmp_path_factory.mktemp("cache")) as model:
        yield model


@pytest.fixture(scope="module")
def oracle(model: SimulatedModel) -> Oracle:
    return Oracle(model)


@pytest.mark.timeout(3600)  # a minute and a half on two idle cores, and cores are not always idle
def test_a_thousand_seeds_of_faults_lose_no_token_and_change_none() -> None:
    result = soak(0, NUM_SEEDS, num_usable_cores())
    assert not result.failed, "\n".join(f"shoal simulate seed {o.seed}: {o.problem}" for o in result.failed)
    assert result.num_seeds == NUM_SEEDS


def test_the_same_seed_gives_the_same_trace(model: SimulatedModel, oracle: Oracle) -> None:
    hashes = [run_seed(model, oracle, seed).trace_hash for seed in range(8)]
    assert hashes == [run_seed(model, oracle, seed).trace_hash for seed in range(8)]
    assert len(set(hashes)) == len(hashes)


def test_a_seed_gives_the_same_trace_whatever_ran_before(model: SimulatedModel, oracle: Oracle) -> None:
    """These two had other traces in other runs while tasks were cancelled in the order of their addresses."""
    hashes: dict[int, set[str]] = {61: set(), 109: set()}
    for other in range(6):
        run_seed(model, oracle, other)
        for seed, found in hashes.items():
            found.add(run_seed(model, oracle, seed).trace_hash)
    assert [len(found) for found in hashes.values()] == [1, 1]


def test_another_process_gives_the_same_trace(model: SimulatedModel, oracle: Oracle, tmp_path: Path) -> None:
    """With other hash seeds, so that no set of strings decides anything."""
    told = [
        subprocess.run(
            [sys.executable, "-m", "shoal.cli", "simulate", "seed", "11"],
            env={"PYTHONHASHSEED": seed, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0] == told[1]
    assert f"trace {run_seed(model, oracle, 11).trace_hash}" in told[0]


def test_the_seeds_bring_every_kind_of_fault_and_spare_one_replica(model: SimulatedModel) -> None:
    setups = [draw_setup(model, seed) for seed in range(NUM_SEEDS)]
    assert {fault.kind for setup in setups for fault in setup.plan} == set(Kind)
    for setup in setups:
        assert all(fault.kind in TRANSIENT for fault in setup.plan if fault.node in setup.steady)
        for layer in model.layers:
            steady = {expert for place in setup.steady for expert in setup.holdings[place].get(layer, ())}
            assert steady == set(range(model.store.spec.router.num_experts))


def test_the_seeds_bring_right_and_wrong_drafts_and_prompts_of_several_chunks(model: SimulatedModel) -> None:
    setups = [draw_setup(model, seed) for seed in range(NUM_SEEDS)]
    drafted = [setup.drafting for setup in setups if setup.drafting is not None]
    assert {each.width for each in drafted} == set(range(1, WIDEST_DRAFT + 1))
    assert {each.luck for each in drafted} == set(LUCK)
    assert any(LONG_PROMPT in setup.prompts and len(setup.prompts) > 1 for setup in setups)
    assert model.opened.tokenizer is not None
    assert len(model.opened.tokenizer.encode(LONG_PROMPT)) > PREFILL_CHUNK


def test_drafts_that_were_right_bring_tokens_and_change_none(model: SimulatedModel, oracle: Oracle) -> None:
    lucky, unlucky = (
        next(
            outcome
            for seed in range(NUM_SEEDS)
            if (setup := draw_setup(model, seed)).drafting is not None and setup.drafting.luck == luck
            for outcome in [run_seed(model, oracle, seed)]
        )
        for luck in (1.0, 0.0)
    )
    assert (lucky.problem, unlucky.problem) == (None, None)
    assert lucky.num_drafted > 0
    assert unlucky.num_drafted == 0


def test_the_documents_name_every_planted_bug_and_every_fault() -> None:
    told = (Path(__file__).parents[3] / "docs" / "SEEDS.md").read_text(encoding="utf-8")
    assert not [bug.name for bug in PLANTED_BUGS if f"| {bug.name} |" not in told]
    assert not [kind.value for kind in Kind if f"`{kind.value}`" not in told]


@pytest.mark.parametrize("bug", PLANTED_BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(
    model: SimulatedModel, oracle: Oracle, bug: PlantedBug, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bug.needs_shared_calls and not model.backend.is_row_exact:
        pytest.skip("needs the C++ kernels, which were not built")
    bug.plant(monkeypatch)
    for seed in (seed for seed in range(SEEDS_PER_BUG) if bug.shows_under(draw_setup(model, seed))):
        problem = run_seed(model, oracle, seed).problem
        if problem is not None:
            print(f"{bug.name}: seed {seed}: {problem}")
            return
    pytest.fail(f"{SEEDS_PER_BUG} seeds did not find it")
