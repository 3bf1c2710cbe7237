"""A swarm whose nodes die one after another mends itself, and no answer notices; real code, virtual time."""

from collections.abc import Iterator

import pytest

from shoal.protocol.errors import CoverageGap
from shoal.simulations.virtual.healing import GAP_WAIT_S, NUM_DEATHS, NUM_NODES, run_full_disks, run_gap, run_healing
from shoal.simulations.virtual.model import SimulatedModel
from shoal.simulations.virtual.run import Oracle
from shoal.simulations.virtual.soak import demo_model_in_memory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedModel]:
    with demo_model_in_memory(tmp_path_factory.mktemp("cache")) as model:
        yield model


@pytest.fixture(scope="module")
def oracle(model: SimulatedModel) -> Oracle:
    return Oracle(model)


@pytest.mark.parametrize("seed", range(2))
def test_every_expert_has_two_holders_again_after_every_death_and_no_more(
    model: SimulatedModel, oracle: Oracle, seed: int
) -> None:
    healed = run_healing(model, oracle, seed)
    assert healed.num_left == NUM_NODES - NUM_DEATHS
    assert (healed.min_replicas, healed.max_replicas) == (2, 2)
    assert healed.slowest_s < 5.0


def test_without_healing_the_same_deaths_end_in_a_gap(model: SimulatedModel, oracle: Oracle) -> None:
    with pytest.raises(CoverageGap):
        run_healing(model, oracle, 0, is_healing=False)


@pytest.mark.parametrize("seed", range(6))
def test_an_answer_that_meets_a_gap_waits_for_the_take_over_and_goes_on_at_the_same_token(
    model: SimulatedModel, oracle: Oracle, seed: int
) -> None:
    healed = run_gap(model, oracle, seed)
    assert healed.min_replicas >= 1
    assert 90.0 < healed.slowest_s < GAP_WAIT_S


@pytest.mark.parametrize("seed", range(2))
def test_full_disks_keep_no_node_from_serving_and_when_there_is_room_again_the_swarm_mends(
    model: SimulatedModel, oracle: Oracle, seed: int
) -> None:
    full, mended = run_full_disks(model, oracle, seed)
    assert (full.num_left, full.min_replicas) == (NUM_NODES - 1, 1)
    assert (mended.min_replicas, mended.max_replicas) == (2, 2)
