"""`POST /v1/completions`: text or token ids to continue; with `echo`, also how likely the prompt was."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from shoal.client.api.body import read_json
from shoal.client.api.cancellable import Emit, EventStream, JsonAnswer
from shoal.client.api.choices import Job, jobs_for, run_jobs
from shoal.client.api.completion_schema import CompletionRequest
from shoal.client.api.sampling_fields import sampling_of
from shoal.client.api.services import Services
from shoal.client.api.token_names import CompletionLogprobs, usage
from shoal.client.engine.generate import Token
from shoal.client.engine.logprobs import TokenScore


class _Choice:
    """One answer while it grows."""

    def __init__(self, index: int, logprobs: CompletionLogprobs | None) -> None:
        self.index = index
        self.logprobs = logprobs
        self.text = ""
        self.num_tokens = 0
        self.finish_reason: str | None = None

    def echo(self, prompt: str, scores: Sequence[TokenScore]) -> None:
        """Begin with the prompt."""
        self.text = prompt
        if self.logprobs is not None:
            for score in scores:
                self.logprobs.add(score.token_id, score.logprob, score.top_logprobs)

    def push(self, token: Token) -> None:
        self.text += token.text
        self.num_tokens += 1
        if self.logprobs is not None:
            self.logprobs.add(token.id, token.logprob, token.top_logprobs)
        if token.finish_reason is not None:
            self.finish_reason = token.finish_reason.value

    def as_json(self) -> dict[str, object]:
        """What has not been told yet; forgets it."""
        text, self.text = self.text, ""
        logprobs = self.logprobs.take() if self.logprobs is not None else None
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": self.finish_reason}


@dataclass(frozen=True, slots=True)
class _Completion:
    """A request that is ready to run."""

    request: CompletionRequest
    prompts: Sequence[Sequence[int]]
    jobs: Sequence[Job]
    """Of all prompts, `n` each; none if only the prompt is asked about."""
    choices: Sequence[_Choice]
    head: dict[str, object]

    def usage(self) -> dict[str, object]:
        return usage(sum(map(len, self.prompts)), sum(choice.num_tokens for choice in self.choices))


class CompletionEndpoint:
    """Continues texts."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def post(self, request: Request) -> Response:
        """Everything that can be refused without the model is refused before the answer's first byte."""
        body = await read_json(request, CompletionRequest)
        self._services.shutdown.check()
        self._services.check_model(body.model)
        body.check()
        completion = self._prepare(body)
        if body.stream:
            return EventStream(self._services, lambda emit: self._stream(completion, emit))
        return JsonAnswer(self._services, lambda: self._answer(completion))

    def _prepare(self, body: CompletionRequest) -> _Completion:
        services = self._services
        sampling = sampling_of(body, services.card.defaults, body.limit or 1, body.logprobs or 0)
        prompts = [self._prompt_ids(prompt, body) for prompt in body.prompts()]
        jobs = [job for ids in prompts for job in jobs_for(services, ids, sampling, body.num_choices, None, "prompt")]
        choices = [_Choice(index, self._logprobs(body)) for index in range(len(jobs))]
        return _Completion(body, prompts, jobs if body.limit else [], choices, self._head())

    def _prompt_ids(self, prompt: str | list[int], body: CompletionRequest) -> list[int]:
        if isinstance(prompt, list):
            return prompt
        return self._services.tokenizer.encode(
            prompt, parses_control_tokens=body.parse_special, adds_special_tokens=body.add_special_tokens
        )

    def _logprobs(self, body: CompletionRequest) -> CompletionLogprobs | None:
        return None if body.logprobs is None else CompletionLogprobs(self._services.tokenizer, body.logprobs)

    def _head(self) -> dict[str, object]:
        services = self._services
        return {
            "id": services.new_id("cmpl"),
            "object": "text_completion",
            "created": int(services.clocks.wall()),
            "model": services.card.name,
            "system_fingerprint": services.fingerprint,
        }

    async def _answer(self, completion: _Completion) -> dict[str, object]:
        async def take(place: int, token: Token) -> None:
            completion.choices[place].push(token)

        with self._services.line.request():
            await self._echo(completion)
            await run_jobs(self._services, completion.jobs, take)
        choices = [_finished(choice).as_json() for choice in completion.choices]
        return completion.head | {"choices": choices, "usage": completion.usage()}

    async def _stream(self, completion: _Completion, emit: Emit) -> None:
        head = completion.head | ({"usage": None} if completion.request.wants_usage else {})

        async def tell(place: int, token: Token) -> None:
            choice = completion.choices[place]
            choice.push(token)
            if choice.text or choice.finish_reason is not None:
                await emit(head | {"choices": [choice.as_json()]})

        with self._services.line.request():
            await self._echo(completion)
            for choice in completion.choices if completion.request.echo else ():
                await emit(head | {"choices": [choice.as_json()]})
            await run_jobs(self._services, completion.jobs, tell)
        if completion.request.wants_usage:
            await emit(head | {"choices": [], "usage": completion.usage()})

    async def _echo(self, completion: _Completion) -> None:
        """Put the prompts before their answers; with `logprobs`, ask the model what it thinks of them, once each."""
        body, n = completion.request, completion.request.num_choices
        if not body.echo:
            return
        async with asyncio.TaskGroup() as group:
            scoring = [group.create_task(self._scores(ids, body.logprobs)) for ids in completion.prompts]
        for choice in completion.choices:
            ids, scores = completion.prompts[choice.index // n], scoring[choice.index // n].result()
            choice.echo(self._services.tokenizer.decode(ids, skips_special_tokens=False), scores)

    async def _scores(self, ids: Sequence[int], num_top: int | None) -> list[TokenScore]:
        if num_top is None:
            return []
        async with self._services.line.place():
            return await self._services.model.score(ids, num_top)


def _finished(choice: _Choice) -> _Choice:
    """A choice that was only echoed has reached its limit of no tokens."""
    choice.finish_reason = choice.finish_reason or "length"
    return choice
