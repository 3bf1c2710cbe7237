"""A conversation as token ids: messages and tools as the template has them, and whether it begins by thinking."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shoal.client.api.chat_schema import ContentPart, Message, Tool, ToolCall
from shoal.client.api.deepseek_output import THINK_BEGIN
from shoal.client.api.errors import bad_request
from shoal.client.api.tools import as_system_prompt, for_template
from shoal.client.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """What the model reads."""

    ids: list[int]
    begins_with_reasoning: bool
    """The prompt ends inside `<think>`."""


def chat_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Tool],
    variables: Mapping[str, object],
    add_generation_prompt: bool = True,
) -> ChatPrompt:
    """Render and encode a conversation.

    Raises:
        ApiError: 400, a message that is no text, or that the template would leave out. InvalidRequest: the template
        refuses, or there is none.
    """
    template = tokenizer.chat_template
    known = [_for_template(message, f"messages[{place}]") for place, message in enumerate(messages)]
    if tools and "tools" not in template.variables:
        known = _with_system_prompt(known, as_system_prompt(tools))
    text = template.render(
        known,
        tools=for_template(tools) if tools else None,
        add_generation_prompt=add_generation_prompt,
        variables=variables,
    )
    _check_complete(known, text)
    ids = tokenizer.encode(text, parses_control_tokens=True, adds_special_tokens=False)
    return ChatPrompt(ids, text.rstrip().endswith(THINK_BEGIN))


def _for_template(message: Message, param: str) -> dict[str, object]:
    """Keys that are not set are left out: templates ask whether they are there."""
    content = _text(message.content, f"{param}.content")
    known: dict[str, object] = {"role": "system" if message.role == "developer" else message.role}
    if message.tool_calls:
        known |= {"content": content, "tool_calls": [_call(call) for call in message.tool_calls]}
    else:
        known["content"] = content or ""
    if message.tool_call_id is not None:
        known["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        known["name"] = message.name
    return known


def _call(call: ToolCall) -> dict[str, object]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id, "type": call.type, "function": function}


def _text(content: str | list[ContentPart] | None, param: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    for part in content:
        if part.type not in ("text", "refusal") or part.text is None:
            raise bad_request(f"{param}: this model reads text only, not {part.type}", param, "unsupported_content")
    return "".join(part.text or "" for part in content)


def _with_system_prompt(messages: list[dict[str, object]], text: str) -> list[dict[str, object]]:
    """After the caller's own system prompt, as on the card."""
    first = messages[0] if messages else {}
    if first.get("role") == "system":
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _check_complete(messages: Sequence[Mapping[str, object]], text: str) -> None:
    """A template that does not know a role renders nothing for it, and half a conversation is worse than an error."""
    for place, message in enumerate(messages):
        content = message["content"]
        if message["role"] == "tool" and isinstance(content, str) and content.strip() not in text:
            param = f"messages[{place}]"
            raise bad_request(f"{param}: the model's chat template knows no role 'tool'", param, "unsupported_role")
