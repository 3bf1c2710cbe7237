"""Our exchange with a holder that computes nothing, in a process of its own.

call_ours CHANNEL TOKENS HIDDEN DTYPE     {"calls": 100} -> {"seconds": […]}: bf16[TOKENS, HIDDEN] there, f32 (DTYPE 0)
or another format back
"""

import asyncio
import sys
from contextlib import AsyncExitStack

import uvloop

from shoal.simulations.bench.peers.program import Answer, answer_lines
from shoal.simulations.bench.wire import Opened, Shape, exchange_times, open_channel


async def _calls(opened: Opened, shape: Shape, num_calls: int, reply_dtype: int) -> Answer:
    times = await exchange_times(opened.channel, shape, num_calls, reply_dtype)
    return {"seconds": [taken_s for taken_s, _ in times]}


def main() -> None:
    """Connect, answer, end the holder."""
    kind, shape, reply_dtype = sys.argv[1], Shape(int(sys.argv[2]), int(sys.argv[3])), int(sys.argv[4])
    stack = AsyncExitStack()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        opened = runner.run(stack.enter_async_context(open_channel(kind)))
        try:
            answer_lines(lambda question: runner.run(_calls(opened, shape, question["calls"], reply_dtype)))
        finally:
            runner.run(stack.aclose())


if __name__ == "__main__":
    main()
