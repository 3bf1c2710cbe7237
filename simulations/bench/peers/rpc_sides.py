"""The two sides of `rpc.py`: we with experts on holders, llama.cpp with layers on RPC servers; answers and their times.

Both decode greedily the same prompts of the same weights in fp32, one thread a process.
"""

import asyncio
import statistics
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter

from shoal.client.engine.generate import Engine
from shoal.client.engine.sampler import Sampling
from shoal.simulations.bench.peers.program import Program
from shoal.simulations.bench.peers.small_model import prompt_of


@dataclass(frozen=True, slots=True)
class Answers:
    """What one measurement gave."""

    ids: tuple[tuple[int, ...], ...]
    """By stream."""
    token_ms: float
    """Median time between two tokens of a stream."""


async def ours(engine: Engine, num_tokens: int, num_streams: int) -> Answers:
    """So many answers at a time of our client. Raises as `Engine.stream`."""
    told = await asyncio.gather(*(_stream(engine, stream, num_tokens) for stream in range(num_streams)))
    gaps = [1000 * (later - earlier) for _, times in told for earlier, later in pairwise(times)]
    return Answers(tuple(tuple(ids) for ids, _ in told), statistics.median(gaps))


async def theirs(program: Program, num_tokens: int, num_streams: int) -> Answers:
    """So many answers at a time of llama.cpp; our client lives on meanwhile.

    Raises:
        NotAvailable: it ended.
    """
    said = await asyncio.to_thread(program.ask, {"tokens": num_tokens, "streams": num_streams})
    return Answers(tuple(tuple(ids) for ids in said["ids"]), 1000 * statistics.median(said["seconds"]))


async def alone(program: Program, num_tokens: int) -> Answers:
    """One answer of ours in one process (`decode_ours.py`).

    Raises:
        NotAvailable: it ended.
    """
    said = await asyncio.to_thread(program.ask, {"tokens": num_tokens})
    return Answers((tuple(said["ids"]),), 1000 * statistics.median(said["seconds"]))


def num_equal(answers: Sequence[Answers]) -> tuple[int, int]:
    """Streams in which all measurements gave the same tokens, and streams in all."""
    by_stream = list(zip(*(each.ids for each in answers), strict=True))
    return sum(len(set(given)) == 1 for given in by_stream), len(by_stream)


async def _stream(engine: Engine, stream: int, num_tokens: int) -> tuple[list[int], list[float]]:
    ids, times = list[int](), list[float]()
    sampling = Sampling(max_tokens=num_tokens, ignore_eos=True)
    async with aclosing(engine.stream(prompt_of(stream), sampling)) as tokens:
        async for token in tokens:
            ids.append(token.id)
            times.append(perf_counter())
    return ids, times
