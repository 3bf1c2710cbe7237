"""Many seeds, one after another on each core; which of them broke a promise, and how to run that one again."""

import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from shoal.experts.locations import default_cache_dir
from shoal.experts.store import ModelStore
from shoal.protocol.messages import Rounding
from shoal.simulations.demo_model import MODEL_DIRECTORY
from shoal.simulations.virtual.model import SimulatedModel, load_model
from shoal.simulations.virtual.run import Oracle, Outcome, run_seed

CHUNK = 50
"""Seeds that a worker process takes at a time."""


@dataclass(frozen=True, slots=True)
class SoakResult:
    """What many seeds came to."""

    num_seeds: int
    num_tokens: int
    num_calls: int
    """Requests to holders."""
    failed: tuple[Outcome, ...]

    def as_json(self) -> dict[str, object]:
        """All of it as plain values."""
        failed = [{"seed": outcome.seed, "problem": outcome.problem} for outcome in self.failed]
        return {"seeds": self.num_seeds, "tokens": self.num_tokens, "calls": self.num_calls, "failed": failed}


@contextmanager
def demo_model_in_memory(cache_dir: Path | None = None) -> Iterator[SimulatedModel]:
    """The demonstration model with every expert packed, in fp32."""
    with ModelStore.open(MODEL_DIRECTORY, cache_dir or default_cache_dir()) as store:
        yield load_model(store, MODEL_DIRECTORY, Rounding.FP32)


def run_seeds(seeds: Sequence[int]) -> list[Outcome]:
    """Run seeds in this process, on one thread; events are left out, for they are many."""
    torch.set_num_threads(1)
    with demo_model_in_memory() as model:
        oracle = Oracle(model)
        return [replace(run_seed(model, oracle, seed), events=[]) for seed in seeds]


def soak(first: int, count: int, jobs: int, progress: Callable[[int], None] = lambda done: None) -> SoakResult:
    """Run seeds `first` to `first + count - 1` in `jobs` processes. progress: told how many are done."""
    chunks = [range(start, min(start + CHUNK, first + count)) for start in range(first, first + count, CHUNK)]
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _without_warnings) as pool:
        for done in pool.map(run_seeds, chunks):
            outcomes += done
            progress(len(outcomes))
    return SoakResult(
        num_seeds=len(outcomes),
        num_tokens=sum(outcome.num_tokens for outcome in outcomes),
        num_calls=sum(outcome.promises.num_sent for outcome in outcomes),
        failed=tuple(outcome for outcome in outcomes if outcome.problem is not None),
    )


def _without_warnings() -> None:
    """In a worker process: nodes in trouble say so, and trouble is all that happens here."""
    logging.getLogger("shoal").setLevel(logging.ERROR)
