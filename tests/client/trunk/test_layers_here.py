"""A pass of a model that is all in this process: how layers share jobs on the worker.

Run: pytest tests/client/trunk/test_layers_here.py
"""

import asyncio
from collections.abc import Callable, Iterator
from itertools import count, repeat
from pathlib import Path

import pytest
import torch

from shoal.client.trunk.checkpoint import load_trunk
from shoal.client.trunk.kv_cache import LatentCache, Rows
from shoal.client.trunk.local_experts import LocalExperts
from shoal.client.trunk.model import JOB_S, Timing, Trunk
from shoal.experts.reference_backend import ReferenceBackend
from shoal.experts.store import ModelStore
from shoal.experts.worker import Args, Result, Worker
from shoal.protocol.events import Event, LayerTimed
from shoal.protocol.messages import Rounding
from tests.checkpoints import SHAPES, write_checkpoint

IDS = torch.tensor([3, 1, 4])


class CountingWorker(Worker):
    """Runs jobs at once. `before_job`: called before each."""

    def __init__(self) -> None:
        self.num_jobs = 0
        self.before_job: Callable[[], None] = lambda: None

    async def run(self, fn: Callable[[*Args], Result], *args: *Args) -> Result:
        self.before_job()
        self.num_jobs += 1
        return fn(*args)

    async def aclose(self) -> None:
        pass


class Here:
    """A small model whose jobs are counted."""

    def __init__(self, root: Path) -> None:
        write_checkpoint(root / "model", SHAPES["plain"], seed=1)
        self._store = ModelStore.open(root / "model", root / "cache")
        self.worker = CountingWorker()
        self.trunk: Trunk = load_trunk(self._store, self.worker, torch.float32)
        self.experts = LocalExperts(self._store, ReferenceBackend(), Rounding.FP32, self.worker)

    def run(self, clock: Iterator[float], cache: LatentCache | None = None) -> tuple[torch.Tensor, list[Event]]:
        """One pass and what it told; `clock`: a reading each time that somebody looks."""
        events = list[Event]()
        rows = [Rows(len(IDS), cache or self.trunk.new_cache())]
        timing = Timing(7, lambda: next(clock), events.append)
        return asyncio.run(self.trunk.forward_rows(IDS, rows, self.experts, timing)), events

    def jobs_of(self, clock: Iterator[float]) -> int:
        """Jobs of a pass, less those that add the last experts and norm."""
        before = self.worker.num_jobs
        self.run(clock)
        return self.worker.num_jobs - before - 2


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Here:
    return Here(tmp_path_factory.mktemp("here"))


def test_layers_that_take_no_time_are_one_job(here: Here) -> None:
    assert len(here.trunk.layers) > 1
    assert here.jobs_of(repeat(0.0)) == 1


def test_layers_that_take_long_are_a_job_each(here: Here) -> None:
    assert here.jobs_of(JOB_S * reading for reading in count()) == len(here.trunk.layers)


def test_the_same_bits_come_of_one_job_and_of_many(here: Here) -> None:
    at_once, _ = here.run(repeat(0.0))
    one_by_one, _ = here.run(JOB_S * reading for reading in count())
    assert torch.equal(at_once, one_by_one)


@pytest.mark.parametrize("step", [0.0, JOB_S])
def test_every_layer_says_once_and_in_turn_what_it_took(here: Here, step: float) -> None:
    _, events = here.run(step * reading for reading in count())
    told = [event for event in events if isinstance(event, LayerTimed)]
    assert [event.layer for event in told] == list(here.trunk.layers)
    assert {(event.pass_id, event.num_tokens) for event in told} == {(7, len(IDS))}
    assert all((event.attention_s > 0) == (step > 0) for event in told)


def test_a_pass_that_ends_between_two_jobs_leaves_the_cache_as_it_was(here: Here) -> None:
    cache, ends_at = here.trunk.new_cache(), here.worker.num_jobs + 1

    def cancel() -> None:
        if here.worker.num_jobs == ends_at:
            raise asyncio.CancelledError

    here.worker.before_job = cancel
    with pytest.raises(asyncio.CancelledError):
        here.run((JOB_S * reading for reading in count()), cache)
    here.worker.before_job = lambda: None
    assert cache.num_tokens == 0
    again, _ = here.run(repeat(0.0), cache)
    assert torch.equal(again, here.run(repeat(0.0))[0])
