"""Text completions, and the tokenizer's endpoints: what evaluations need.

Run: pytest tests/client/api/test_completions.py
"""

import asyncio
from typing import Any

import pytest

from tests.client.api.fake_model import MAX_MODEL_LEN, FakeModel, events, gateway


def complete(fake: FakeModel | None = None, /, status: int = 200, **fields: object) -> Any:
    async def send() -> Any:
        return await gateway(fake).complete(**fields)

    response = asyncio.run(send())
    assert response.status_code == status, response.text
    return events(response) if fields.get("stream") and status == 200 else response.json()


def test_an_answer_has_openais_shape() -> None:
    answer = complete(FakeModel(" Hi."))
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": " Hi.", "logprobs": None, "finish_reason": "stop"}]


def test_prompts_may_be_texts_or_token_ids_one_or_many() -> None:
    for prompt, asked in (([5, 6], [[5, 6]]), ([[5], [6, 7]], [[5], [6, 7]])):
        model = FakeModel()
        assert len(complete(model, prompt=prompt)["choices"]) == len(asked)
        assert [ids for ids, _ in model.asked] == asked
    assert [choice["index"] for choice in complete(prompt=["a", "b"], n=2)["choices"]] == [0, 1, 2, 3]


def test_sixteen_tokens_are_the_default() -> None:
    model = FakeModel()
    complete(model)
    assert model.asked[0][1].max_tokens == 16


def test_echo_repeats_the_prompt_and_scores_it() -> None:
    (choice,) = complete(FakeModel("!"), prompt=[3, 40, 41], echo=True, logprobs=1, max_tokens=1)["choices"]
    assert choice["text"] == "<｜User｜>DE!"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["<｜User｜>", "D", "E", "!"]
    assert logprobs["token_logprobs"] == [None, -2.0, -2.0, -0.5]
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["top_logprobs"][1]["D"] == -2.0
    assert max(logprobs["top_logprobs"][1].values()) == -1.0
    assert logprobs["text_offset"] == [0, 8, 9, 10]


def test_echo_alone_generates_nothing() -> None:
    model = FakeModel()
    answer = complete(model, prompt="frog", echo=True, max_tokens=0, logprobs=0)
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("frog", "length")
    assert answer["usage"]["completion_tokens"] == 0
    assert model.asked == []


def test_a_stream_tells_the_same() -> None:
    chunks = complete(
        FakeModel("Hello there."), stream=True, echo=True, logprobs=1, stream_options={"include_usage": True}
    )
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == "HelloHello there."
    told = [name for chunk in chunks[:-1] for name in chunk["choices"][0]["logprobs"]["tokens"]]
    assert "".join(told) == "HelloHello there."
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": [[5], "a"]}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a"] * 200}, "prompt"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 99}, "logprobs"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, object], param: str) -> None:
    assert complete(status=400, **fields)["error"]["param"] == param


def test_a_prompt_is_never_cut() -> None:
    error = complete(status=400, prompt=[5] * MAX_MODEL_LEN)["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")


def test_the_tokenizer_is_there_for_evaluations() -> None:
    async def use() -> tuple[Any, Any, Any]:
        door = gateway()
        info = (await door.get("/tokenizer_info")).json()
        tokens = (await door.post("/tokenize", {"prompt": info["eos_token"], "add_special_tokens": False})).json()
        text = (await door.post("/detokenize", {"tokens": [*tokens["tokens"], 40]})).json()
        return info, tokens, text

    info, tokens, text = asyncio.run(use())
    assert (tokens["tokens"], tokens["count"], tokens["max_model_len"]) == ([1], 1, MAX_MODEL_LEN)
    assert text["prompt"] == info["eos_token"] + "D"
    assert "messages" in info["chat_template"]


def test_tokenize_takes_a_conversation_and_may_leave_control_tokens_as_text() -> None:
    async def use() -> tuple[Any, Any, Any]:
        door = gateway()
        chat = await door.post("/tokenize", {"messages": [{"role": "user", "content": "D"}], "return_token_strs": True})
        plain = await door.post("/tokenize", {"prompt": "<｜User｜>", "parse_special": False})
        neither = await door.post("/tokenize", {})
        return chat.json(), plain.json(), neither.status_code

    chat, plain, neither = asyncio.run(use())
    assert chat["token_strs"] == ["<｜begin▁of▁sentence｜>", "<｜User｜>", "D", "<｜Assistant｜>"]
    assert plain["count"] > 1
    assert neither == 400


def test_detokenize_refuses_ids_outside_the_vocabulary() -> None:
    async def use() -> int:
        return (await gateway().post("/detokenize", {"tokens": [10**6]})).status_code

    assert asyncio.run(use()) == 400
