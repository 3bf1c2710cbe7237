"""`POST /v1/chat/completions`."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from shoal.client.api.body import read_json
from shoal.client.api.cancellable import Emit, EventStream, JsonAnswer
from shoal.client.api.chat_choice import ChatChoice
from shoal.client.api.chat_prompt import ChatPrompt, chat_prompt
from shoal.client.api.chat_schema import ChatRequest, JsonObjectFormat, JsonSchemaFormat
from shoal.client.api.choices import Job, jobs_for, run_jobs
from shoal.client.api.deepseek_output import DeepSeekOutput
from shoal.client.api.sampling_fields import sampling_of
from shoal.client.api.services import Services
from shoal.client.api.token_names import usage
from shoal.client.engine.generate import Token


@dataclass(frozen=True, slots=True)
class _Chat:
    """A request that is ready to run."""

    request: ChatRequest
    jobs: Sequence[Job]
    choices: Sequence[ChatChoice]
    head: dict[str, object]
    """`id`, `created`, `model`: the same in every chunk."""

    def usage(self) -> dict[str, object]:
        num_tokens = sum(choice.num_tokens for choice in self.choices)
        num_reasoning_tokens = sum(choice.num_reasoning_tokens for choice in self.choices)
        return usage(len(self.jobs[0].prompt_ids), num_tokens, num_reasoning_tokens)


class ChatEndpoint:
    """Answers conversations."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def post(self, request: Request) -> Response:
        """Everything that can be refused without the model is refused before the answer's first byte."""
        body = await read_json(request, ChatRequest)
        self._services.shutdown.check()
        self._services.check_model(body.model)
        body.check()
        chat = await self._prepare(body)
        if body.stream:
            return EventStream(self._services, lambda emit: self._stream(chat, emit))
        return JsonAnswer(self._services, lambda: self._answer(chat))

    async def _prepare(self, body: ChatRequest) -> _Chat:
        services, tokenizer = self._services, self._services.tokenizer
        tools = body.callable_tools
        prompt = chat_prompt(tokenizer, body.messages, tools, body.template_variables)
        grammar = await self._grammar(body, prompt)
        num_top = (body.top_logprobs or 0) if body.logprobs else 0
        sampling = sampling_of(body, services.card.defaults, body.limit, num_top)
        jobs = jobs_for(services, prompt.ids, sampling, body.num_choices, grammar, "messages")
        choices = [
            ChatChoice(
                index,
                tokenizer,
                DeepSeekOutput(begins_with_reasoning=prompt.begins_with_reasoning, parses_calls=bool(tools)),
                bool(body.logprobs),
                lambda: services.new_id("call"),
            )
            for index in range(len(jobs))
        ]
        return _Chat(body, jobs, choices, self._head(body.stream))

    async def _grammar(self, body: ChatRequest, prompt: ChatPrompt) -> str | None:
        """The grammar that the answer must keep to, if any."""
        grammars = self._services.grammars
        if grammars is None:
            return None
        grammar: str | None = None
        if body.is_call_forced:
            parameters = {tool.function.name: tool.function.parameters for tool in body.callable_tools}
            is_parallel = body.tool_choice == "required" and body.parallel_tool_calls is not False
            grammar = grammars.calls(parameters, is_parallel)
        elif isinstance(body.response_format, JsonSchemaFormat):
            grammar = grammars.json(body.response_format.json_schema.schema)
        elif isinstance(body.response_format, JsonObjectFormat):
            grammar = grammars.json(None)
        if grammar is not None and prompt.begins_with_reasoning:
            grammar = grammars.after_reasoning(grammar)
        if grammar is not None:
            await grammars.check(grammar)
        return grammar

    def _head(self, is_stream: bool | None) -> dict[str, object]:
        services = self._services
        return {
            "id": services.new_id("chatcmpl"),
            "object": "chat.completion.chunk" if is_stream else "chat.completion",
            "created": int(services.clocks.wall()),
            "model": services.card.name,
            "system_fingerprint": services.fingerprint,
        }

    async def _answer(self, chat: _Chat) -> dict[str, object]:
        async def take(place: int, token: Token) -> None:
            chat.choices[place].push(token)

        await self._run(chat, take)
        choices = [
            {
                "index": choice.index,
                "message": choice.message(),
                "logprobs": choice.logprobs(),
                "finish_reason": choice.finish_reason,
            }
            for choice in chat.choices
        ]
        return chat.head | {"choices": choices, "usage": chat.usage()}

    async def _stream(self, chat: _Chat, emit: Emit) -> None:
        no_usage: dict[str, object] = {"usage": None} if chat.request.wants_usage else {}

        async def tell(place: int, token: Token) -> None:
            choice = chat.choices[place]
            if choice.num_tokens == 0:
                await emit(chat.head | _chunk(choice, {"role": "assistant", "content": ""}) | no_usage)
            delta = choice.push(token).as_json()
            if delta:
                await emit(chat.head | _chunk(choice, delta, choice.new_logprobs()) | no_usage)
            if choice.finish_reason is not None:
                last = _chunk(choice, {}, choice.new_logprobs(), choice.finish_reason)
                await emit(chat.head | last | no_usage)

        await self._run(chat, tell)
        if chat.request.wants_usage:
            await emit(chat.head | {"choices": [], "usage": chat.usage()})

    async def _run(self, chat: _Chat, on_token: Callable[[int, Token], Awaitable[None]]) -> None:
        with self._services.line.request():
            await run_jobs(self._services, chat.jobs, on_token)


def _chunk(
    choice: ChatChoice,
    delta: dict[str, object],
    logprobs: dict[str, object] | None = None,
    finish_reason: str | None = None,
) -> dict[str, object]:
    told = {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    return {"choices": [told]}
