"""litellm: its three ways to an OpenAI-compatible server."""

import os

import litellm
from cases import MODEL, SIZE_SCHEMA, STORY, run_cases

BASE = os.environ["OPENAI_BASE_URL"]
HOW = {"api_base": BASE, "api_key": "none", "max_tokens": 12}
PAINT = {"type": "function", "function": {"name": "paint", "parameters": SIZE_SCHEMA}}


def case_openai():
    answer = litellm.completion(model=f"openai/{MODEL}", messages=STORY, **HOW)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens == 12


def case_hosted_vllm():
    assert litellm.completion(model=f"hosted_vllm/{MODEL}", messages=STORY, **HOW).choices[0].message.content


def case_text_completion():
    model = f"text-completion-openai/{MODEL}"
    assert litellm.text_completion(model=model, prompt="Once upon a time", **HOW).choices[0].text


def case_stream_with_usage():
    stream = litellm.completion(
        model=f"openai/{MODEL}", messages=STORY, stream=True, stream_options={"include_usage": True}, **HOW
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert any(getattr(chunk, "usage", None) for chunk in chunks)


async def case_async():
    assert (await litellm.acompletion(model=f"openai/{MODEL}", messages=STORY, **HOW)).choices[0].message.content


def case_tools():
    answer = litellm.completion(
        model=f"openai/{MODEL}", messages=STORY, tools=[PAINT], tool_choice="required", **HOW | {"max_tokens": 200}
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "paint"


def case_reasoning_content():
    answer = litellm.completion(
        model=f"hosted_vllm/{MODEL}", messages=STORY, extra_body={"chat_template_kwargs": {"thinking": True}}, **HOW
    )
    assert answer.choices[0].message.reasoning_content


def case_errors_are_mapped():
    try:
        litellm.completion(model=f"openai/{MODEL}", messages=STORY, **HOW | {"max_tokens": 100_000})
    except litellm.BadRequestError as error:  # ContextWindowExceededError is one
        assert "context" in str(error)
    else:
        raise AssertionError("no error")
    try:
        litellm.completion(model="openai/gpt-9", messages=STORY, **HOW)
    except litellm.NotFoundError:
        pass
    else:
        raise AssertionError("no error")


run_cases(globals())
