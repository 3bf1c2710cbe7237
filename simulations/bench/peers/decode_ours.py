"""We decode a model in one process, without a network.

decode_ours DIRECTORY FORMAT     {"tokens": 48} -> {"ids": […], "seconds": […]}, of every token but the first
"""

import asyncio
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import torch
import uvloop

from shoal.client.engine.generate import Engine
from shoal.client.engine.sampler import Sampling
from shoal.client.single_process import single_process_engine
from shoal.client.trunk.linear_maker import TrunkFormat
from shoal.experts.worker import ComputeWorker
from shoal.protocol.messages import Rounding
from shoal.simulations.bench.peers.program import Answer, answer_lines
from shoal.simulations.bench.peers.small_model import PROMPT_IDS


async def _decode(engine: Engine, num_tokens: int) -> Answer:
    ids, times = list[int](), list[float]()
    async for token in engine.stream(PROMPT_IDS, Sampling(max_tokens=num_tokens, ignore_eos=True)):
        ids.append(token.id)
        times.append(perf_counter())
    return {"ids": ids, "seconds": [after - before for before, after in pairwise(times)]}


def main() -> None:
    """Answer, on one engine: experts are read when they are first chosen."""
    torch.set_num_threads(1)
    directory, trunk_format = Path(sys.argv[1]), TrunkFormat(sys.argv[2])
    with tempfile.TemporaryDirectory() as cache, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        worker = ComputeWorker("decode")
        with single_process_engine(directory, Rounding.FP32, worker, Path(cache), trunk_format) as engine:
            answer_lines(lambda question: runner.run(_decode(engine, question["tokens"])))
            runner.run(engine.aclose())


if __name__ == "__main__":
    main()
