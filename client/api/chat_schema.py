"""What `/v1/chat/completions` takes. Fields that are not here are ignored; these have types and ranges."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shoal.client.api.errors import bad_request
from shoal.client.api.sampling_fields import SamplingFields, TokenCount
from shoal.client.engine.logprobs import MAX_TOP_LOGPROBS

MAX_TOOLS = 128
"""OpenAI's limit."""

ToolName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.\-]{1,64}$")]
"""OpenAI's rule, and dots, which some clients use for namespaces."""

JsonSchema = dict[str, object]


class ContentPart(msgspec.Struct, frozen=True):
    """A piece of a message. Only text can be read."""

    type: str
    text: str | None = None


class FunctionCall(msgspec.Struct, frozen=True):
    """A call that the model made earlier. `arguments`: JSON as text."""

    name: str
    arguments: str = "{}"


class ToolCall(msgspec.Struct, frozen=True):
    """One of an assistant message's calls."""

    function: FunctionCall
    id: str | None = None
    type: Literal["function"] = "function"


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Function(msgspec.Struct, frozen=True):
    """A function that the model may call."""

    name: ToolName
    description: str | None = None
    parameters: JsonSchema | None = None


class Tool(msgspec.Struct, frozen=True):
    """A tool; functions are the only kind."""

    function: Function
    type: Literal["function"] = "function"


class NamedFunction(msgspec.Struct, frozen=True):
    """The function that must be called."""

    name: str


class NamedTool(msgspec.Struct, frozen=True):
    """`tool_choice` that names one."""

    function: NamedFunction
    type: Literal["function"] = "function"


class TextFormat(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """No rule."""


class JsonObjectFormat(msgspec.Struct, frozen=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class NamedSchema(msgspec.Struct, frozen=True):
    """A JSON schema with a name."""

    name: str = "answer"
    schema: JsonSchema | None = None
    strict: bool | None = None
    """Always so."""


class JsonSchemaFormat(msgspec.Struct, frozen=True, tag_field="type", tag="json_schema"):
    """JSON that a schema accepts."""

    json_schema: NamedSchema


class ChatRequest(SamplingFields, frozen=True, kw_only=True):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: dict[str, object] | None = None
    functions: list[object] | None = None
    function_call: object = None

    def check(self) -> None:
        """Refuse what the types can not say.

        Raises:
            ApiError: 400, naming the field.
        """
        if self.functions is not None or self.function_call is not None:
            raise bad_request("functions: use tools instead", "functions", "unsupported_parameter")
        if self.top_logprobs and not self.logprobs:
            raise bad_request("top_logprobs: needs logprobs to be true", "top_logprobs")
        if self.limit == 0:
            raise bad_request("max_tokens: must be at least 1", "max_tokens")
        self._check_tool_choice()

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer; None: all that the context allows."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def is_call_forced(self) -> bool:
        """Whether the answer must be a tool call."""
        return isinstance(self.tool_choice, NamedTool) or self.tool_choice == "required"

    @property
    def callable_tools(self) -> list[Tool]:
        """The tools that the model may call in this answer."""
        tools = [] if self.tool_choice == "none" else self.tools or []
        if isinstance(self.tool_choice, NamedTool):
            return [tool for tool in tools if tool.function.name == self.tool_choice.function.name]
        return tools

    @property
    def template_variables(self) -> dict[str, object]:
        """What the chat template is told besides messages; `thinking` is DeepSeek-V3.1's switch."""
        effort = self.reasoning_effort
        wanted: dict[str, object] = {} if effort is None else {"thinking": effort not in ("none", "minimal")}
        return wanted | (self.chat_template_kwargs or {})

    def _check_tool_choice(self) -> None:
        if self.is_call_forced and not self.callable_tools:
            raise bad_request("tool_choice: names no tool of tools", "tool_choice")
        if self.is_call_forced and not isinstance(self.response_format, TextFormat | None):
            raise bad_request("response_format: can not be kept by an answer that must be a call", "response_format")
