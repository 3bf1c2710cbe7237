"""A worker whose jobs keep no books for gradients: a fifth less time per layer at batch 1 (measured, 213 to 170 µs).

Stands between the trunk and the worker that it is given. Knows callables only. Tensors that such a job makes may be
read anywhere, but written only in other such jobs.
"""

from collections.abc import Callable
from functools import partial

import torch

from shoal.experts.worker import Args, Result, Worker


class InferenceWorker(Worker):
    """Runs jobs on another worker, in torch's inference mode."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def run(self, fn: Callable[[*Args], Result], *args: *Args) -> Result:
        return await self._worker.run(_in_inference_mode, partial(fn, *args))

    async def aclose(self) -> None:
        await self._worker.aclose()


def _in_inference_mode(job: Callable[[], Result]) -> Result:
    with torch.inference_mode():
        return job()
