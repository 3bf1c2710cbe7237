"""Many seeds, one after another on each core; which of them broke a promise, and how to run that one again.

With a state file a run that was ended, by Ctrl-C, a crash or a power cut, goes on where it was.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from shoal.experts.locations import default_cache_dir
from shoal.experts.store import ModelStore
from shoal.protocol.messages import Rounding
from shoal.simulations.demo_model import MODEL_DIRECTORY
from shoal.simulations.virtual.crew import Crew
from shoal.simulations.virtual.ledger import Ledger, SoakResult
from shoal.simulations.virtual.model import SimulatedModel, load_model
from shoal.simulations.virtual.program import program_version
from shoal.simulations.virtual.run import Oracle, Outcome, run_seed

Progress = Callable[[SoakResult], None]


@contextmanager
def demo_model_in_memory(cache_dir: Path | None = None) -> Iterator[SimulatedModel]:
    """The demonstration model with every expert packed, in fp32."""
    with ModelStore.open(MODEL_DIRECTORY, cache_dir or default_cache_dir()) as store:
        yield load_model(store, MODEL_DIRECTORY, Rounding.FP32)


@contextmanager
def seeds_of_demo_model() -> Iterator[Callable[[int], Outcome]]:
    """Runs seeds in this process, on one thread; the model and the oracle's answers are made once. Events are left out
    of the outcomes, for they are many."""
    torch.set_num_threads(1)
    logging.getLogger("shoal").setLevel(logging.ERROR)  # nodes in trouble say so, and trouble is all that happens here
    with demo_model_in_memory() as model:
        oracle = Oracle(model)
        yield lambda seed: replace(run_seed(model, oracle, seed), events=[])


def soak(
    first: int, count: int, jobs: int, progress: Progress = lambda result: None, resume: Path | None = None
) -> SoakResult:
    """Run seeds `first` to `first + count - 1` in `jobs` processes. progress: told what is known, whenever it is more.
    resume: a file that says how far an earlier run came, and is kept up to date.

    Raises:
        InvalidRequest: see `Ledger`.
    """
    with Ledger(first, first + count, program_version(), resume) as ledger:
        progress(ledger.result)
        if ledger.num_left:
            with Crew(min(jobs, ledger.num_left), seeds_of_demo_model, _died) as crew:
                for outcome in crew.run(ledger.hand_out):
                    ledger.add(outcome)
                    progress(ledger.result)
        return ledger.result


def _died(seed: int, status: int) -> Outcome:
    return Outcome(seed, f"the process that ran it ended with status {status}")
