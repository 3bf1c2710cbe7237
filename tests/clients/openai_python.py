"""openai-python, 2.x and 3.x: what its users call."""

import asyncio
import json
import os
import time
import urllib.request

import openai
from cases import MODEL, SIZE_SCHEMA, STORY, run_cases
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

client = OpenAI()
TOOLS = [{"type": "function", "function": {"name": "paint", "description": "Paint it.", "parameters": SIZE_SCHEMA}}]


class Painting(BaseModel):
    color: str
    size: int


def metric(name: str) -> float:
    text = urllib.request.urlopen(os.environ["BASE_URL"] + "/metrics").read().decode()
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"shoal:{name} "))


def case_models_are_listed_and_found():
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def case_chat():
    answer = client.chat.completions.create(model=MODEL, messages=STORY, max_tokens=16)
    assert answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.system_fingerprint


def case_greedy_and_seeded_answers_repeat():
    for fields in ({"temperature": 0}, {"seed": 7}):
        asked = {"model": MODEL, "messages": STORY, "max_tokens": 16, **fields}
        texts = {client.chat.completions.create(**asked).choices[0].message.content for _ in range(2)}
        assert len(texts) == 1, texts


def case_stream_with_usage_equals_the_whole_answer():
    whole = client.chat.completions.create(model=MODEL, messages=STORY, max_tokens=16, temperature=0)
    stream = client.chat.completions.create(
        model=MODEL, messages=STORY, max_tokens=16, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def case_stream_helper():
    with client.chat.completions.stream(model=MODEL, messages=STORY, max_tokens=12) as stream:
        assert "".join(event.delta for event in stream if event.type == "content.delta")


def case_several_choices():
    answer = client.chat.completions.create(model=MODEL, messages=STORY, max_tokens=8, n=3, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def case_stop():
    answer = client.chat.completions.create(model=MODEL, messages=STORY, max_tokens=64, temperature=0, stop=[" "])
    assert " " not in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


def case_logprobs():
    answer = client.chat.completions.create(model=MODEL, messages=STORY, max_tokens=4, logprobs=True, top_logprobs=3)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    assert all(len(entry.top_logprobs) == 3 and entry.logprob <= 0 for entry in entries)


def case_tools_forced_and_answered():
    messages = [*STORY]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=200
    )
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert set(json.loads(call.function.arguments)) == {"color", "size"}
    messages += [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "It is painted."}]
    assert client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, max_tokens=4).choices


def case_tools_streamed():
    named = {"type": "function", "function": {"name": "paint"}}
    with client.chat.completions.stream(
        model=MODEL, messages=STORY, tools=TOOLS, tool_choice=named, max_tokens=200
    ) as stream:
        for _ in stream:
            pass
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert call.function.name == "paint"
    assert set(json.loads(call.function.arguments)) == {"color", "size"}


def case_parse_into_a_class():
    answer = client.chat.completions.parse(
        model=MODEL, messages=STORY, response_format=Painting, max_tokens=200, seed=3
    )
    choice = answer.choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(choice.message.parsed, Painting)


def case_json_schema():
    wanted = {"type": "json_schema", "json_schema": {"name": "painting", "schema": SIZE_SCHEMA, "strict": True}}
    answer = client.chat.completions.create(model=MODEL, messages=STORY, response_format=wanted, max_tokens=200)
    assert json.loads(answer.choices[0].message.content)["color"] in ("red", "green")


def case_thinking_is_reasoning_content():
    thinking = {"chat_template_kwargs": {"thinking": True}}
    answer = client.chat.completions.create(model=MODEL, messages=STORY, max_tokens=8, extra_body=thinking)
    assert answer.choices[0].message.reasoning_content
    stream = client.chat.completions.create(
        model=MODEL, messages=STORY, max_tokens=8, reasoning_effort="high", stream=True
    )
    # read to its end: half read, the garbage collector may close it inside httpcore 1.0's own lock, for ever
    told = [getattr(chunk.choices[0].delta, "reasoning_content", None) for chunk in stream]
    assert any(told)


def case_completions():
    answer = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=8)
    assert answer.choices[0].text
    many = client.completions.create(model=MODEL, prompt=[[5, 6, 7], [8, 9]], max_tokens=1, echo=True, logprobs=1)
    assert [len(choice.logprobs.token_logprobs) for choice in many.choices] == [4, 3]
    stream = client.completions.create(model=MODEL, prompt="Once upon", max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream)


async def case_async_and_at_once():
    async with AsyncOpenAI() as several:
        asked = [several.chat.completions.create(model=MODEL, messages=STORY, max_tokens=8) for _ in range(6)]
        assert all(answer.choices[0].message.content for answer in await asyncio.gather(*asked))


def case_leaving_a_stream_stops_the_work():
    before = metric("request_aborts_total")
    stream = client.chat.completions.create(
        model=MODEL, messages=STORY, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    _stopped(before)


def case_leaving_a_whole_answer_stops_the_work():
    before = metric("request_aborts_total")
    impatient = client.with_options(timeout=0.4, max_retries=0)
    try:
        impatient.chat.completions.create(model=MODEL, messages=STORY, max_tokens=1900, extra_body={"ignore_eos": True})
        raise AssertionError("1900 tokens within 0.4 s")
    except openai.APITimeoutError:
        _stopped(before)


def _stopped(before: float) -> None:
    deadline = time.monotonic() + 5
    while metric("request_aborts_total") == before or metric("num_requests_running") > 0:
        assert time.monotonic() < deadline, "the work goes on"
        time.sleep(0.02)
    tokens = metric("generation_tokens_total")
    time.sleep(0.2)
    assert metric("generation_tokens_total") == tokens


def _raises(kind, code, **fields):
    try:
        client.chat.completions.create(**({"model": MODEL, "messages": STORY, "max_tokens": 4} | fields))
    except kind as error:
        assert error.code == code, error.code
    else:
        raise AssertionError(f"no {kind.__name__}")


def case_errors_have_their_types():
    _raises(openai.NotFoundError, "model_not_found", model="gpt-4o")
    _raises(openai.BadRequestError, "context_length_exceeded", max_tokens=100_000)
    _raises(openai.BadRequestError, "invalid_type", temperature=9)
    _raises(openai.BadRequestError, "context_length_exceeded", messages=[{"role": "user", "content": "frog " * 5000}])


def case_responses_are_not_there_and_say_so():
    try:
        client.responses.create(model=MODEL, input="hi")
    except openai.NotFoundError as error:
        assert error.code == "not_offered"
    else:
        raise AssertionError("no NotFoundError")


run_cases(globals())
