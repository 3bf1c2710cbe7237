"""The same client for programs without an event loop: a thin bridge to one loop on a thread of its own.

    with BlockingSwarm(SwarmSettings(model=Path("DIR"), join=("ADDRESS or TOKEN",))) as swarm:
        for token in swarm.stream("Once upon a time"):
            print(token.text, end="")

Nothing is written twice: every method waits for its async twin in `swarm.py`, and errors come through as themselves.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self, TypeVar

from shoal.client.answer import Answer
from shoal.client.engine.generate import Token
from shoal.client.engine.sampler import Sampling
from shoal.client.settings import SwarmSettings
from shoal.client.swarm import Prompt, Swarm
from shoal.protocol.events import Observer, ignore
from shoal.protocol.ids import ExpertId, LayerId

Result = TypeVar("Result")


class BlockingSwarm:
    """A joined swarm, used from ordinary code. Not for use inside an event loop: use `Swarm` there."""

    def __init__(self, settings: SwarmSettings, observe: Observer = ignore) -> None:
        """Join; raises what `Swarm.join` raises. `observe` is called on the loop's thread."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="shoal client", daemon=True)
        self._thread.start()
        self._stack = AsyncExitStack()
        try:
            self._swarm = self._wait(self._stack.enter_async_context(Swarm.join(settings, observe)))
        except BaseException:
            self._stop()
            raise

    def generate(self, prompt: Prompt, sampling: Sampling | None = None) -> Answer:
        """Generate to the end."""
        return self._wait(self._swarm.generate(prompt, sampling))

    def stream(self, prompt: Prompt, sampling: Sampling | None = None) -> Iterator[Token]:
        """Generate token by token; closing the iterator cancels the work at the nodes."""
        steps = _Steps(self._swarm.stream(prompt, sampling))
        try:
            while (token := self._wait(steps.next())) is not None:
                yield token
        finally:
            self._wait(steps.aclose())

    def coverage(self) -> dict[LayerId, dict[ExpertId, int]]:
        """Usable replicas of every expert, by layer."""
        return self._wait(_call(self._swarm.coverage))

    def close(self) -> None:
        """Leave the swarm and end the thread. Idempotent."""
        if self._thread.is_alive():
            try:
                self._wait(self._stack.aclose())
            finally:
                self._stop()

    def _wait(self, work: "Coroutine[object, object, Result]") -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _run(self) -> None:
        """The thread: a loop until `_stop`; then the Runner ends what libraries have left running in it."""
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.get_loop().run_forever()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Steps:
    """One answer's token stream, on the loop's side; may be closed while a step waits, as Ctrl-C does."""

    def __init__(self, tokens: AsyncGenerator[Token, None]) -> None:
        self._tokens = tokens
        self._step: asyncio.Task[object] | None = None

    async def next(self) -> Token | None:
        self._step = asyncio.current_task()
        return await anext(self._tokens, None)

    async def aclose(self) -> None:
        if self._step is not None and not self._step.done():
            self._step.cancel()
            await asyncio.wait([self._step])
        await self._tokens.aclose()


async def _call(fn: Callable[[], Result]) -> Result:
    return fn()
