"""Chat through an endpoint: what it sends, what it makes of answers, and that nothing cut off passes for an answer."""

import asyncio
import json
from collections.abc import Callable

import httpx2
import pytest

from shoal.client.chat.backend import ChatMessage, ChatOptions, ChatPiece
from shoal.client.chat.openai_chat import open_endpoint
from shoal.protocol.errors import ChannelClosed, ConnectFailed, InvalidRequest, PeerFailed, ShoalError

QUESTION = (ChatMessage("system", "Be brief."), ChatMessage("user", "hello"))

Handler = Callable[[httpx2.Request], httpx2.Response]


def events(*items: object) -> str:
    """Server-sent events as vLLM writes them, with a ping between."""
    return ": ping\n\n".join(f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n" for item in items)


def delta(finish_reason: str | None = None, **fields: str) -> dict[str, object]:
    return {"choices": [{"delta": fields, "finish_reason": finish_reason}]}


def ask(handler: Handler, options: ChatOptions | None = None, model: str | None = "m") -> list[ChatPiece]:
    async def main() -> list[ChatPiece]:
        transport = httpx2.MockTransport(handler)
        async with open_endpoint("http://there/v1", "key", model, transport) as backend:
            return [piece async for piece in backend.stream(QUESTION, options or ChatOptions())]

    return asyncio.run(main())


def says(text: str, status: int = 200) -> Handler:
    return lambda request: httpx2.Response(status, text=text)


def test_text_and_thoughts_come_apart_and_the_reason_comes_last() -> None:
    text = events(
        delta(role="assistant"), delta(reasoning_content="hm"), delta(content="hi"), delta("length"),
        {"choices": [], "usage": {"total_tokens": 3}}, "[DONE]",
    )  # fmt: skip
    assert ask(says(text)) == [ChatPiece("", "hm", 1), ChatPiece("hi", "", 1), ChatPiece(finish_reason="length")]


def test_the_request_is_openais_and_carries_the_key() -> None:
    seen: list[httpx2.Request] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, text=events("[DONE]"))

    ask(handler, ChatOptions(max_tokens=5, temperature=0.0, seed=7, thinking=True))
    assert seen[0].url == "http://there/v1/chat/completions"
    assert seen[0].headers["authorization"] == "Bearer key"
    assert json.loads(seen[0].content) == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        "stream": True,
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.95,
        "seed": 7,
        "chat_template_kwargs": {"thinking": True},
    }


def test_the_first_model_that_is_listed_is_taken() -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json={"data": [{"id": "first"}, {"id": "second"}]})
        assert json.loads(request.content)["model"] == "first"
        return httpx2.Response(200, text=events("[DONE]"))

    assert ask(handler, model=None) == [ChatPiece(finish_reason="stop")]


@pytest.mark.parametrize(
    ("handler", "error", "words"),
    [
        (says(events(delta(content="half"))), ChannelClosed, "in the middle"),
        (says(events({"error": {"message": "nobody holds expert 5"}})), PeerFailed, "nobody holds expert 5"),
        (says(events({"error": "bare words"})), PeerFailed, "bare words"),
        (says("data: {not json\n\n"), PeerFailed, "not JSON"),
        (says("data: [1]\n\n"), PeerFailed, "no object"),
        (says(events({"choices": [3]})), PeerFailed, "no choice"),
        (says(events({"choices": [{"delta": {"content": 5}}]})), PeerFailed, "no text"),
        (says('{"error": {"message": "too long"}}', 400), InvalidRequest, "400: too long"),
        (says("<html>", 503), PeerFailed, "503"),
        (says('{"error": null}', 401), InvalidRequest, "401"),
    ],
)
def test_every_failure_is_an_error_of_ours(handler: Handler, error: type[ShoalError], words: str) -> None:
    with pytest.raises(error, match=words):
        ask(handler)


def test_nobody_there_is_said_at_once() -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused", request=request)

    with pytest.raises(ConnectFailed, match="does not answer"):
        ask(handler, model=None)


def test_an_address_that_is_none_is_refused() -> None:
    async def main() -> None:
        async with open_endpoint("localhost:8000"):
            pass

    with pytest.raises(InvalidRequest, match="no URL"):
        asyncio.run(main())


@pytest.mark.parametrize("body", ["[]", '{"data": []}', '{"data": [{}]}', "nothing", '{"data": 5}'])
def test_a_list_of_models_that_is_none_is_refused(body: str) -> None:
    with pytest.raises(InvalidRequest, match=r"list models|serves no model"):
        ask(says(body), model=None)
