"""Tools on their way to the model: as the chat template has them, or as DeepSeek-V3.1's model card writes them.

DeepSeek-V3.1's own template does not mention tools; its card gives the text that the model was trained on
(deepseek-ai/DeepSeek-V3.1, "Toolcall"). Knows no tokens.
"""

import json
from collections.abc import Sequence

from shoal.client.api.chat_schema import Tool
from shoal.client.api.deepseek_output import CALL_BEGIN, CALL_END, CALL_SEP, CALLS_BEGIN, CALLS_END


def for_template(tools: Sequence[Tool]) -> list[dict[str, object]]:
    """OpenAI's form, which templates that know tools expect."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.function.name,
                "description": tool.function.description or "",
                "parameters": _parameters(tool),
            },
        }
        for tool in tools
    ]


def as_system_prompt(tools: Sequence[Tool]) -> str:
    """The card's text, for templates that do not know tools."""
    described = "\n\n".join(
        f"### {tool.function.name}\nDescription: {tool.function.description or ''}\n\n"
        f"Parameters: {json.dumps(_parameters(tool), ensure_ascii=False)}"
        for tool in tools
    )
    call = f"{CALL_BEGIN}tool_call_name{CALL_SEP}tool_call_arguments{CALL_END}"
    return (
        f"## Tools\nYou have access to the following tools:\n\n{described}\n\n"
        "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
        f"{CALLS_BEGIN}{call}{{{{additional_tool_calls}}}}{CALLS_END}\n\n"
        "Where:\n\n"
        "- `tool_call_name` must be an exact match to one of the available tools\n"
        "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
        "- For multiple tool calls, chain them directly without separators or spaces\n"
    )


def _parameters(tool: Tool) -> dict[str, object]:
    return tool.function.parameters or {"type": "object", "properties": {}}
