"""Several sequences at once: the answers to one request, each with a place of its own in the line."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from shoal.client.api.errors import bad_request
from shoal.client.api.metrics import Stopwatch
from shoal.client.api.services import Services
from shoal.client.engine.generate import Token
from shoal.client.engine.sampler import Sampling
from shoal.protocol.errors import ContextLengthExceeded

OnToken = Callable[[int, Token], Awaitable[None]]
"""Told of every token of every sequence: (place of the sequence, token)."""


@dataclass(frozen=True, slots=True)
class Job:
    """One sequence to generate."""

    prompt_ids: Sequence[int]
    sampling: Sampling
    grammar: str | None = None
    """That `Grammars.check` has passed."""


def jobs_for(
    services: Services, prompt_ids: Sequence[int], sampling: Sampling, n: int, grammar: str | None, field: str
) -> list[Job]:
    """`n` answers to one prompt. Each has its own seed, made from the request's, so that the same request gives the
    same answers; the first is what n = 1 gives. field: of the request, where the prompt came from.

    Raises:
        ApiError: the prompt and its answer do not fit the model's context. InvalidRequest: what the model would refuse.
    """
    try:
        services.model.check(prompt_ids, sampling)
    except ContextLengthExceeded as error:
        raise bad_request(str(error), field, "context_length_exceeded") from error
    if n == 1:
        return [Job(prompt_ids, sampling, grammar)]
    seed = services.new_seed() if sampling.seed is None else sampling.seed
    return [Job(prompt_ids, replace(sampling, seed=(seed + i) % 2**63), grammar) for i in range(n)]


async def run_jobs(services: Services, jobs: Sequence[Job], on_token: OnToken) -> None:
    """Generate all of them; the first failure ends the others.

    Raises:
        ExceptionGroup: of what the model raised. *Cancellation:* ends all.
    """
    async with asyncio.TaskGroup() as group:
        for place, job in enumerate(jobs):
            group.create_task(_run(services, place, job, on_token))


async def _run(services: Services, place: int, job: Job, on_token: OnToken) -> None:
    stopwatch = Stopwatch(services.metrics, services.clocks.monotonic)
    constraint = services.grammars.constraint(job.grammar) if job.grammar and services.grammars else None
    async with services.line.place():
        stopwatch.placed(len(job.prompt_ids))
        async with aclosing(services.model.stream(job.prompt_ids, job.sampling, constraint)) as tokens:
            async for token in tokens:
                stopwatch.token()
                await on_token(place, token)
                if token.finish_reason is not None:
                    stopwatch.finished(token.finish_reason.value)
