"""One answer of a chat while it grows: tokens in, OpenAI's deltas out; together they are the message.

Streamed and whole answers go through the same object, so they can not differ.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from shoal.client.api.deepseek_output import CallArguments, CallBegins, Content, DeepSeekOutput, Part, Reasoning
from shoal.client.api.token_names import chat_logprob
from shoal.client.engine.generate import FinishReason, Token
from shoal.client.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Delta:
    """What a stream tells of one token; empty while text is held back."""

    reasoning: str = ""
    content: str = ""
    calls: list[dict[str, object]] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """OpenAI's `delta`."""
        told = {"reasoning_content": self.reasoning, "content": self.content, "tool_calls": self.calls}
        return {key: value for key, value in told.items() if value}


class ChatChoice:
    """Place `index` of a chat's choices."""

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        output: DeepSeekOutput,
        has_logprobs: bool,
        new_call_id: Callable[[], str],
    ) -> None:
        self.index = index
        self.num_tokens = 0
        self.num_reasoning_tokens = 0
        self.finish_reason: str | None = None
        """OpenAI's word; None while the answer grows."""
        self._tokenizer = tokenizer
        self._output = output
        self._has_logprobs = has_logprobs
        self._new_call_id = new_call_id
        self._reasoning = ""
        self._content = ""
        self._calls: list[dict[str, str]] = []
        self._arguments: list[str] = []
        self._logprobs: list[dict[str, object]] = []
        self._num_logprobs_told = 0

    def push(self, token: Token) -> Delta:
        """Take a token; what a stream tells of it, perhaps nothing."""
        self.num_tokens += 1
        self.num_reasoning_tokens += self._output.is_reasoning
        if self._has_logprobs:
            self._logprobs.append(chat_logprob(self._tokenizer, token))
        parts = self._output.push(token.text)
        if token.finish_reason is not None:
            parts += self._output.end()
            self.finish_reason = self._reason(token.finish_reason)
        delta = Delta()
        for part in parts:
            self._add(part, delta)
        return delta

    def message(self) -> dict[str, object]:
        """The whole answer."""
        message: dict[str, object] = {"role": "assistant", "content": self._content, "refusal": None}
        if self._reasoning:
            message["reasoning_content"] = self._reasoning
        if self._calls:
            message["content"] = self._content or None
            message["tool_calls"] = [
                {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": arguments}}
                for call, arguments in zip(self._calls, self._arguments, strict=True)
            ]
        return message

    def logprobs(self) -> dict[str, object] | None:
        """All of them."""
        return {"content": self._logprobs, "refusal": None} if self._has_logprobs else None

    def new_logprobs(self) -> dict[str, object] | None:
        """Those that a stream has not told yet."""
        told, self._num_logprobs_told = self._num_logprobs_told, len(self._logprobs)
        return {"content": self._logprobs[told:], "refusal": None} if self._has_logprobs else None

    def _reason(self, reason: FinishReason) -> str:
        has_ended_with_calls = reason is FinishReason.STOP and self._output.has_calls
        return "tool_calls" if has_ended_with_calls else reason.value

    def _add(self, part: Part, delta: Delta) -> None:
        match part:
            case Reasoning(text):
                self._reasoning += text
                delta.reasoning += text
            case Content(text):
                self._content += text
                delta.content += text
            case CallBegins(index, name):
                call = {"id": self._new_call_id(), "name": name}
                self._calls.append(call)
                self._arguments.append("")
                function = {"name": name, "arguments": ""}
                delta.calls.append({"index": index, "id": call["id"], "type": "function", "function": function})
            case CallArguments(index, text):
                self._arguments[index] += text
                delta.calls.append({"index": index, "function": {"arguments": text}})
