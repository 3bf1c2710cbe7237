"""Times of answers: what a pass takes by the clock, and what it takes of each process's processor.

Knows engines, not whether their experts are here or in a swarm.
"""

import asyncio
import statistics
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import torch

from shoal.client import Sampling
from shoal.client.engine.generate import Engine
from shoal.client.trunk.moe import RoutedExperts
from shoal.protocol.ids import LayerId

NUM_PROMPT_TOKENS = 8
"""Of an answer whose decoding is measured."""


@dataclass(frozen=True, slots=True)
class PassTimes:
    """Some answers that ran together."""

    median_s: float
    """Between two tokens of an answer."""
    mean_s: float


async def decode(engine: Engine, streams: int, tokens: int) -> PassTimes:
    """Passes of `streams` answers, of the time in which all of them are under way.

    Raises:
        ShoalError: as `Engine.stream`.
    """
    times = await asyncio.gather(*(_answer(engine, place, NUM_PROMPT_TOKENS, tokens) for place in range(streams)))
    begin, end = max(each[0] for each in times), min(each[-1] for each in times)
    gaps = [later - earlier for each in times for earlier, later in pairwise(each) if earlier >= begin and later <= end]
    return PassTimes(statistics.median(gaps), statistics.fmean(gaps))


async def prefill_s(engine: Engine, tokens: int, place: int) -> float:
    """Seconds to the first token of a prompt; `place` chooses which.

    Raises:
        ShoalError: as `Engine.stream`.
    """
    started = perf_counter()
    return (await _answer(engine, place, tokens, 1))[0] - started


async def _answer(engine: Engine, place: int, prompt: int, tokens: int) -> list[float]:
    """When each token came."""
    vocab_size = engine.trunk.config.vocab_size
    ids = [(place * 7919 + i * 104_729) % vocab_size for i in range(prompt)]
    sampling = Sampling(temperature=1.0, seed=place, max_tokens=tokens, ignore_eos=True)
    times = list[float]()
    async with aclosing(engine.stream(ids, sampling)) as stream:
        async for _ in stream:
            times.append(perf_counter())
    return times


class Paused:
    """`RoutedExperts` that waits before it asks others, or nobody: what a trunk takes by itself after a pause."""

    def __init__(self, inner: RoutedExperts | None) -> None:
        """inner: None: nothing is computed, and zeros are the answer."""
        self.pause_s = 0.0
        self.waited_s = 0.0
        """Since it began, all pauses as they were."""
        self.num_calls = 0
        self._layers = set[LayerId]()
        self._inner = inner

    def begin(self) -> None:
        """Count from here on."""
        self.waited_s, self.num_calls = 0.0, 0

    @property
    def num_passes(self) -> float:
        """Since it began; every pass asks once for each layer."""
        return self.num_calls / len(self._layers)

    @property
    def waited_per_pass_s(self) -> float:
        """Since it began."""
        return self.waited_s / self.num_passes

    async def __call__(
        self, layer: LayerId, x: torch.Tensor, topk_idx: torch.Tensor, topk_weights: torch.Tensor
    ) -> torch.Tensor:
        """See `RoutedExperts`."""
        started = perf_counter()
        self.num_calls += 1
        self._layers.add(layer)
        if self.pause_s:
            await asyncio.sleep(self.pause_s)
        self.waited_s += perf_counter() - started
        if self._inner is not None:
            return await self._inner(layer, x, topk_idx, topk_weights)
        return torch.zeros(x.shape, dtype=torch.float32)


def cpu_s(pid: int) -> float:
    """Processor seconds of all threads of a process so far, to the nanosecond (proc(5), schedstat).

    Raises:
        OSError: it has ended.
    """
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text(encoding="ascii").split()[0]) for file in files) / 1e9


class CpuMeter:
    """Processor seconds of some processes, by name, since the last look."""

    def __init__(self, pids: Mapping[str, int], read: Callable[[int], float] = cpu_s) -> None:
        self._pids = pids
        self._read = read
        self._last = {name: read(pid) for name, pid in pids.items()}

    def lap(self) -> dict[str, float]:
        """What each has used since the last lap."""
        now = {name: self._read(pid) for name, pid in self._pids.items()}
        used = {name: now[name] - self._last[name] for name in now}
        self._last = now
        return used
