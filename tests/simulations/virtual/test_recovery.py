"""What a fault costs a stream is bounded, in virtual time, which no busy machine disturbs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.client.routing.dispatch import HEDGE_SHARE
from shoal.protocol.errors import InvalidRequest
from shoal.simulations.virtual.model import SimulatedModel
from shoal.simulations.virtual.recovery import measure_recovery, measure_tail
from shoal.simulations.virtual.soak import demo_model_in_memory

NUM_RUNS = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedModel]:
    cache: Path = tmp_path_factory.mktemp("cache")
    with demo_model_in_memory(cache) as model:
        yield model


@pytest.mark.parametrize(("fault", "most_rtts"), [("kill", 2.5), ("reset", 2.5), ("silence", 6.0)])
def test_a_fault_costs_a_few_round_trips_and_slows_one_token(
    model: SimulatedModel, fault: str, most_rtts: float
) -> None:
    result = measure_recovery(model, fault, NUM_RUNS)
    assert result.worst_rtts <= most_rtts
    assert result.num_slow_tokens <= 1


def test_an_unknown_fault_is_refused(model: SimulatedModel) -> None:
    with pytest.raises(InvalidRequest, match="kill"):
        measure_recovery(model, "rain", 1)


def test_calls_that_stall_are_overtaken_within_the_hedging_budget(model: SimulatedModel) -> None:
    tail = measure_tail(model)
    assert tail.p99_to_median <= 1.5
    assert tail.hedges_per_request <= HEDGE_SHARE
