"""Conversations are rendered as transformers renders them, and templates stay in their sandbox.

Run: pytest tests/client/text/test_chat_template.py
`tests/vectors/deepseek_v3_chat_template.json` is DeepSeek-V3's own template (MIT; source named in the file).
"""

import json
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from shoal.client.text.chat_template import ChatTemplate
from shoal.protocol.errors import CheckpointError, InvalidRequest

VECTOR = json.loads((Path(__file__).parents[2] / "vectors" / "deepseek_v3_chat_template.json").read_text("utf-8"))
SPECIAL_TOKENS = {"bos_token": VECTOR["bos_token"], "eos_token": VECTOR["eos_token"]}

CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
CONVERSATIONS: dict[str, list[dict[str, object]]] = {
    "one question": [{"role": "user", "content": "Hello!"}],
    "system prompts": [
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "  Why?\n"},
    ],
    "thinking is dropped": [
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "<think>hm</think>4"},
        {"role": "user", "content": "<&> and ümläuts 漢字"},
    ],
    "tool calls": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "-3 °C"},
        {"role": "tool", "content": "snow"},
        {"role": "assistant", "content": "Cold."},
    ],
}

OTHERS = {
    "whitespace": "{% for m in messages %}\n  {% if loop.first %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}\nend\n",
    "json": "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }}",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "tools": "{% if tools %}{{ tools | length }}{% else %}none{% endif %}{{ documents is none }}",
}


@pytest.mark.parametrize("name", list(CONVERSATIONS))
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_deepseeks_template_renders_as_in_transformers(name: str, add_generation_prompt: bool) -> None:
    theirs, _ = render_jinja_template(
        [CONVERSATIONS[name]],
        chat_template=VECTOR["chat_template"],
        add_generation_prompt=add_generation_prompt,
        **SPECIAL_TOKENS,
    )
    template = ChatTemplate(VECTOR["chat_template"], SPECIAL_TOKENS)
    assert template.render(CONVERSATIONS[name], add_generation_prompt=add_generation_prompt) == theirs[0]


@pytest.mark.parametrize("source", OTHERS.values(), ids=list(OTHERS))
def test_whitespace_and_filters_are_those_of_transformers(source: str) -> None:
    theirs, _ = render_jinja_template([CONVERSATIONS["thinking is dropped"]], chat_template=source)
    ours = ChatTemplate(source, {}).render(CONVERSATIONS["thinking is dropped"], add_generation_prompt=False)
    assert ours == theirs[0]


def test_variables_and_tools_reach_the_template() -> None:
    template = ChatTemplate("{{ thinking }} {{ tools[0].name }}", {})
    assert template.render([], tools=[{"name": "a"}], variables={"thinking": True}) == "True a"


def test_a_template_that_refuses_the_messages_says_why() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}", {}).render([])


def test_content_of_the_wrong_type_is_the_callers_fault() -> None:
    with pytest.raises(InvalidRequest):
        ChatTemplate("{{ 'a' + messages[0].content }}", {}).render([{"role": "user", "content": 3}])


@pytest.mark.parametrize(
    "source", ["{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ ''.__class__.__base__() }}"]
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    with pytest.raises(CheckpointError, match="sandbox"):
        ChatTemplate(source, {}).render([{"role": "user", "content": ""}])


def test_a_broken_template_names_its_line() -> None:
    with pytest.raises(CheckpointError, match="line 2"):
        ChatTemplate("\n{% for %}", {})


def test_there_is_no_clock_unless_one_is_handed_in() -> None:
    source = "{{ strftime_now('%Y') }}"
    with pytest.raises(InvalidRequest, match="strftime_now"):
        ChatTemplate(source, {}).render([])
    assert ChatTemplate(source, {}, strftime_now=lambda form: form + "!").render([]) == "%Y!"
