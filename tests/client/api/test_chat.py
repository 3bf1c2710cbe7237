"""What a conversation gets: messages, streams, calls, log-probabilities, usage; and what is refused.

Run: pytest tests/client/api/test_chat.py
"""

import asyncio
import json
from typing import Any

import pytest

from shoal.client.api.deepseek_output import CALL_BEGIN, CALL_END, CALL_SEP, CALLS_BEGIN, CALLS_END
from shoal.client.api.settings import ApiSettings
from shoal.protocol.errors import ChannelClosed, CoverageGap, DeadlineExceeded, PeerFailed, ShoalError, WrongModel
from shoal.protocol.ids import ExpertId, LayerId
from tests.client.api.fake_model import MAX_MODEL_LEN, FakeModel, Gateway, events, gateway, until

GAP = CoverageGap(LayerId(3), [ExpertId(7)], 5.0)
CALL = f'{CALLS_BEGIN}{CALL_BEGIN}weather{CALL_SEP}{{"city": "Oslo"}}{CALL_END}{CALLS_END}'
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def ask(fake: FakeModel | None = None, /, **fields: object) -> Any:
    """The body of a 200."""
    response = asyncio.run(_ask(fake, fields))
    assert response.status_code == 200, response.text
    return response.json()


def refused(fake: FakeModel | None = None, /, **fields: object) -> tuple[int, Any]:
    response = asyncio.run(_ask(fake, fields))
    return response.status_code, response.json()["error"]


def streamed(fake: FakeModel | None = None, /, **fields: object) -> list[Any]:
    return events(asyncio.run(_ask(fake, {"stream": True} | fields)))


async def _ask(fake: FakeModel | None, fields: dict[str, object]) -> Any:
    return await gateway(fake).chat(**fields)


def test_an_answer_has_openais_shape() -> None:
    answer = ask(FakeModel("Hi there."))
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "fake"
    assert answer["system_fingerprint"].startswith("fp_abababababab_")
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hi there.", "refusal": None}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens"] > 0


def test_a_stream_tells_the_same_as_a_whole_answer() -> None:
    chunks = streamed(FakeModel("Grüße, 漢字 and more."), stream_options={"include_usage": True})
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "Grüße, 漢字 and more."
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]][-1] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == ask(FakeModel("Grüße, 漢字 and more."))["usage"]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_a_stream_has_no_usage_unless_asked() -> None:
    assert all("usage" not in chunk for chunk in streamed())


def test_max_tokens_ends_an_answer_by_length() -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        assert ask(**{name: 2})["choices"][0]["finish_reason"] == "length"


def test_thinking_is_told_apart_from_the_answer() -> None:
    model = FakeModel("I should greet.</think>Hello!")
    answer = ask(model, chat_template_kwargs={"thinking": True})
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("I should greet.", "Hello!")
    assert 0 < answer["usage"]["completion_tokens_details"]["reasoning_tokens"] < answer["usage"]["completion_tokens"]
    deltas = [chunk["choices"][0]["delta"] for chunk in streamed(FakeModel(model.text), reasoning_effort="high")]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "I should greet."


@pytest.mark.parametrize("effort", ["none", "minimal"])
def test_little_effort_means_no_thinking(effort: str) -> None:
    model = FakeModel("Hello!")
    assert "reasoning_content" not in ask(model, reasoning_effort=effort)["choices"][0]["message"]


def test_a_call_is_told_as_a_call() -> None:
    choice = ask(FakeModel(f"Wait.{CALL}"), tools=[TOOL])["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Wait."
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert call["type"] == "function"
    assert call["id"]


def test_a_call_is_streamed_in_pieces() -> None:
    deltas = [chunk["choices"][0]["delta"] for chunk in streamed(FakeModel(CALL), tools=[TOOL])]
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert calls[0]["function"] == {"name": "weather", "arguments": ""}
    assert len(calls) > 3
    assert {call["index"] for call in calls} == {0}
    assert "".join(call["function"].get("arguments", "") for call in calls) == '{"city": "Oslo"}'


def test_without_tools_or_with_choice_none_markers_are_text() -> None:
    assert ask(FakeModel(CALL))["choices"][0]["message"]["content"] == CALL
    assert ask(FakeModel(CALL), tools=[TOOL], tool_choice="none")["choices"][0]["message"]["content"] == CALL


def test_tools_and_a_conversation_about_them_reach_the_model() -> None:
    model = FakeModel()
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Weather "}, {"type": "text", "text": "in Oslo?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "snow"},
    ]
    ask(model, messages=messages, tools=[TOOL])
    assert model.tokenizer is not None
    prompt = model.tokenizer.decode(model.asked[0][0], skips_special_tokens=False)
    for words in ("Be brief.\n\n## Tools", "### weather", "<｜User｜>Weather in Oslo?", '{"city": "Oslo"}', "snow"):
        assert words in prompt


def test_choices_have_seeds_of_their_own_made_from_the_requests() -> None:
    model = FakeModel()
    answer = ask(model, n=3, seed=41)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert sorted(sampling.seed or 0 for _, sampling in model.asked) == [41, 42, 43]


def test_choices_stream_side_by_side() -> None:
    chunks = streamed(n=2)
    for index in (0, 1):
        mine = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "Once upon a time."
        assert mine[-1]["finish_reason"] == "stop"


def test_logprobs_have_text_bytes_and_alternatives() -> None:
    choice = ask(FakeModel("é!"), logprobs=True, top_logprobs=2)["choices"][0]
    entries = choice["logprobs"]["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == "é!"
    assert all(entry["logprob"] == -0.5 and len(entry["top_logprobs"]) == 2 for entry in entries)


def test_streamed_logprobs_are_all_told_once() -> None:
    chunks = streamed(FakeModel("é 漢字!"), logprobs=True)
    told = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert bytes(byte for entry in told for byte in entry["bytes"]).decode() == "é 漢字!"


def test_sampling_fields_reach_the_model() -> None:
    model = FakeModel()
    ask(model, temperature=0, top_p=0.5, top_k=-1, min_p=0.1, seed=-1, stop="x", frequency_penalty=1,
        presence_penalty=-1, repetition_penalty=1.1, logit_bias={"5": -100}, max_tokens=9)  # fmt: skip
    sampling = model.asked[0][1]
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 0.5, 0, 0.1)
    assert (sampling.seed, sampling.stop, sampling.logit_bias) == (2**63 - 1, ("x",), ((5, -100.0),))
    assert (sampling.frequency_penalty, sampling.presence_penalty, sampling.max_tokens) == (1, -1, 9)


def test_nulls_and_unknown_fields_are_ignored() -> None:
    nulls = dict.fromkeys(["temperature", "tools", "tool_choice", "stop", "n", "response_format", "stream", "seed"])
    ask(**nulls, store=True, metadata={"a": 1}, service_tier="auto", parallel_tool_calls=None)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": "hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stop": [""]}, "stop[0]"),
        ({"logit_bias": {"frog": 1}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "frog"}}}}, "response_format"),
        ({"functions": []}, "functions"),
    ],
)  # fmt: skip
def test_a_bad_field_is_named(fields: dict[str, object], param: str) -> None:
    status, error = refused(**fields)
    assert (status, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert error["message"]
    assert error["code"]


@pytest.mark.parametrize("body", [b"", b"{", b'"x"', b"[]", b"{}", b"\xff", b'{"messages": ' + b"[" * 9000, b"null"])
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    async def send() -> int:
        return (await gateway().post("/v1/chat/completions", body)).status_code

    assert asyncio.run(send()) == 400


def test_a_prompt_is_never_cut() -> None:
    long = "frog " * MAX_MODEL_LEN
    for fields in ({"messages": [{"role": "user", "content": long}]}, {"max_tokens": MAX_MODEL_LEN}):
        for stream in (False, True):
            status, error = refused(stream=stream, **fields)
            assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")


def test_another_model_is_not_found() -> None:
    status, error = refused(model="gpt-4o")
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert ask(model="fake")
    assert ask(model=None)


FAILURES = [
    (GAP, 503, "coverage_gap"),
    (ChannelClosed("gone"), 503, "swarm_unavailable"),
    (DeadlineExceeded("late"), 504, "deadline_exceeded"),
    (PeerFailed("broken"), 502, "peer_failed"),
    (WrongModel("other"), 502, "integrity_error"),
]


@pytest.mark.parametrize(("error", "status", "code"), FAILURES, ids=[code for _, _, code in FAILURES])
def test_a_failure_before_the_first_token_has_a_status(error: ShoalError, status: int, code: str) -> None:
    for stream in (False, True):
        for n in (1, 2):
            told = refused(FakeModel(error=error, fails_after=0), stream=stream, n=n)
            assert (told[0], told[1]["code"], told[1]["type"]) == (status, code, "server_error")


def test_a_coverage_gap_says_when_to_try_again() -> None:
    response = asyncio.run(_ask(FakeModel(error=GAP, fails_after=0), {}))
    assert response.headers["retry-after"] == "5"


def test_a_failure_in_mid_stream_is_an_error_event_and_never_a_silent_end() -> None:
    chunks = streamed(FakeModel(error=GAP, fails_after=2))
    assert chunks[-1]["error"]["code"] == "coverage_gap"
    assert chunks[1]["choices"][0]["delta"]["content"]


def test_what_nobody_foresaw_is_logged_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeModel):
        def check(self, prompt_ids: object, sampling: object) -> None:
            raise KeyError("the canary's prompt")

    status, error = refused(Broken())
    assert (status, error["code"]) == (500, "internal_error")
    assert "canary" not in caplog.text + json.dumps(error)
    assert "KeyError at" in caplog.text


def test_a_full_line_answers_429_and_when_to_try_again() -> None:
    async def crowd() -> tuple[Any, Any]:
        model = FakeModel(gate=asyncio.Semaphore(0))
        door: Gateway = gateway(model, ApiSettings(max_running=1, max_queue=1))
        first, second = (asyncio.create_task(door.chat()) for _ in range(2))
        line = door.services.line
        await until(lambda: line.num_waiting + line.num_running == 2)
        refused = await door.chat()
        assert model.gate is not None
        for _ in range(100):
            model.gate.release()
        await asyncio.gather(first, second)
        return refused, (await door.chat())

    refused, later = asyncio.run(crowd())
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert later.status_code == 200
