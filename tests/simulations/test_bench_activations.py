"""The benchmark of activations measures what a swarm does, on a run too small to tell anything."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shoal.client.engine.generate import Engine
from shoal.client.routing.activations import Activations
from shoal.experts.store import ModelStore
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.messages import DType, Rounding
from shoal.simulations.bench.activations import FORMATS, ActivationsSettings, bench_activations, table
from shoal.simulations.bench.lossy_experts import LossyExperts
from shoal.simulations.virtual.model import load_model
from tests.checkpoints import SHAPES, write_checkpoint
from tests.swarm.world import memory_swarm

PROMPT = [5, 17, 3, 40, 8, 2, 11]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """How many threads torch uses decides how it sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", FORMATS)
def test_experts_that_lose_as_the_wire_does_score_a_prompt_as_a_swarm_of_as_many_holders(tmp_path: Path, name: str):
    write_checkpoint(tmp_path / "model", SHAPES["plain"], seed=21)

    async def in_swarm() -> list[float | None]:
        activations = Activations(name)
        async with memory_swarm(tmp_path / "model", ["0-3", "4-7"], tmp_path, activations=activations) as world:
            return [score.logprob for score in await world.swarm.score(PROMPT)]

    async def alone() -> list[float | None]:
        with ModelStore.open(tmp_path / "model", tmp_path) as store:
            model = load_model(store, tmp_path / "model", Rounding.FP32)
            engine = Engine(model.opened.trunk, LossyExperts(model, FORMATS[name], 2), None)
            try:
                return [score.logprob for score in await engine.score(PROMPT)]
            finally:
                await engine.aclose()

    assert asyncio.run(alone()) == asyncio.run(in_swarm())


def test_every_format_is_a_row_and_the_exact_one_loses_nothing(tmp_path: Path) -> None:
    result = bench_activations(ActivationsSettings(stories=1, tokens=12, holders=2), tmp_path)
    rows = result["rows"]
    assert isinstance(rows, list)
    assert [row["format"] for row in rows] == list(FORMATS)
    assert rows[0]["changed_tokens"] == 0
    assert max(rows[0]["layer_errors"]) < 1e-6  # other sums of the same terms
    assert all(min(row["layer_errors"]) > 1e-4 for row in rows[1:])
    assert rows[0]["bytes_up"] > rows[1]["bytes_up"] > rows[2]["bytes_up"]
    assert len(table(result).splitlines()) == 4 + len(FORMATS)


@pytest.mark.parametrize("settings", [ActivationsSettings(0), ActivationsSettings(1, 1), ActivationsSettings(1, 2, 0)])
def test_what_cannot_be_measured_is_refused(settings: ActivationsSettings) -> None:
    with pytest.raises(InvalidRequest):
        bench_activations(settings)


def test_formats_of_the_benchmark_are_those_of_the_wire() -> None:
    assert {formats.down for formats in FORMATS.values()} == {DType.F32, DType.BF16, DType.FP8, DType.INT8}
