"""Chat through any OpenAI-compatible endpoint: the second implementation of `ChatBackend`.

HTTP and server-sent events only; needs neither torch nor a model's files. An endpoint's error becomes an error of our
tree, and a stream that ends without `[DONE]` is one too: what is cut off is never taken for an answer.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import httpx2

from shoal.client.chat.backend import ChatMessage, ChatOptions, ChatPiece
from shoal.protocol.errors import ChannelClosed, ConnectFailed, InvalidRequest, NetworkError, PeerFailed, ShoalError

CONNECT_TIMEOUT_S = 10.0
"""For the connection; the answer itself may take as long as a swarm takes."""

READ_TIMEOUT_S = 300.0
"""Between two pieces: a prefill of a long prompt over volunteers' links; servers send pings in between."""

MAX_LINE_BYTES = 1 << 20
"""One event of a stream; a token with all its extras has a few hundred bytes."""

JsonObject = Mapping[str, object]


class OpenAIChat:
    """Answers with what an endpoint serves."""

    def __init__(self, client: httpx2.AsyncClient, model_name: str) -> None:
        """client: with the endpoint's base URL and key. Use `open_endpoint`."""
        self._client = client
        self._model_name = model_name

    @property
    def model_name(self) -> str:
        return self._model_name

    @property
    def where(self) -> str:
        return str(self._client.base_url.host)

    async def stream(self, messages: Sequence[ChatMessage], options: ChatOptions) -> AsyncGenerator[ChatPiece, None]:
        """As the seam says."""
        request = _request(self._model_name, messages, options)
        try:
            async with self._client.stream("POST", "chat/completions", json=request) as response:
                if response.status_code != httpx2.codes.OK:
                    await response.aread()
                    raise _refusal(response)
                finish_reason = "stop"
                async for event in _events(response.aiter_lines()):
                    piece = _piece(event)
                    finish_reason = piece.finish_reason or finish_reason
                    if piece.text or piece.reasoning:
                        yield ChatPiece(piece.text, piece.reasoning, piece.num_tokens)
                yield ChatPiece(finish_reason=finish_reason)
        except httpx2.HTTPError as error:
            raise _broken(error) from error


@asynccontextmanager
async def open_endpoint(
    url: str, api_key: str | None = None, model: str | None = None, transport: httpx2.AsyncBaseTransport | None = None
) -> AsyncIterator[OpenAIChat]:
    """Connect to an endpoint such as `http://127.0.0.1:8000/v1` and choose its model (None: the first it lists).

    Raises:
        InvalidRequest: no URL, or the endpoint refuses. ConnectFailed: nobody answers there.
    """
    if not url.startswith(("http://", "https://")):
        raise InvalidRequest(f"{url!r} is no URL of an endpoint; write e.g. http://127.0.0.1:8000/v1")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    base_url = url.rstrip("/") + "/"
    async with httpx2.AsyncClient(base_url=base_url, headers=headers, timeout=timeout, transport=transport) as client:
        yield OpenAIChat(client, model or await _first_model(client))


async def _first_model(client: httpx2.AsyncClient) -> str:
    try:
        response = await client.get("models", timeout=CONNECT_TIMEOUT_S)
    except httpx2.HTTPError as error:
        raise _broken(error) from error
    if response.status_code != httpx2.codes.OK:
        raise _refusal(response)
    try:
        names = [entry["id"] for entry in response.json()["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(f"{client.base_url} does not list models as OpenAI's API does") from error
    if not names:
        raise InvalidRequest(f"{client.base_url} serves no model")
    return str(names[0])


def _request(model: str, messages: Sequence[ChatMessage], options: ChatOptions) -> JsonObject:
    request: dict[str, object] = {
        "model": model,
        "messages": [message.as_plain() for message in messages],
        "stream": True,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
    }
    if options.seed is not None:
        request["seed"] = options.seed
    if options.thinking:
        request["chat_template_kwargs"] = {"thinking": True}
    return request


async def _events(lines: AsyncIterator[str]) -> AsyncIterator[JsonObject]:
    """The JSON objects of a stream of server-sent events, up to `[DONE]`.

    Raises:
        ChannelClosed: the stream ends before `[DONE]`. PeerFailed: it is not of this form.
    """
    async for line in lines:
        if len(line) > MAX_LINE_BYTES:
            raise PeerFailed(f"an event of more than {MAX_LINE_BYTES} bytes")
        name, _, value = line.partition(":")
        if name != "data":
            continue  # a comment, an event's name, or the empty line between events
        if value.strip() == "[DONE]":
            return
        try:
            event = json.loads(value)
        except ValueError as error:
            raise PeerFailed("the endpoint sent an event that is not JSON") from error
        if not isinstance(event, dict):
            raise PeerFailed("the endpoint sent an event that is no object")
        yield event
    raise ChannelClosed("the endpoint ended the answer in the middle; what you see is not all of it")


def _piece(event: JsonObject) -> ChatPiece:
    """What one event adds. Raises the error that it is, if it is one."""
    if "error" in event:
        raise _error(event["error"])
    choices = event.get("choices")
    if not choices:
        return ChatPiece()  # the last one of some servers, with the usage
    choice = choices[0] if isinstance(choices, list) else None
    if not isinstance(choice, dict) or not isinstance(choice.get("delta") or {}, dict):
        raise PeerFailed("the endpoint sent an event with no choice in it")
    delta = choice.get("delta") or {}
    text, reasoning = _text(delta, "content"), _text(delta, "reasoning_content") or _text(delta, "reasoning")
    return ChatPiece(text, reasoning, 1 if text or reasoning else 0, _text(choice, "finish_reason") or None)


def _text(fields: JsonObject, name: str) -> str:
    """A field that is text, or missing or null."""
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise PeerFailed(f"the endpoint sent a {name} that is no text")
    return value or ""


def _refusal(response: httpx2.Response) -> ShoalError:
    """The error that an answer other than 200 means: ours up to 499, the endpoint's from 500."""
    try:
        said: object = response.json().get("error")
    except (ValueError, AttributeError):
        said = None
    kind = PeerFailed if response.is_server_error else InvalidRequest
    return kind(f"{response.status_code}: {_words(said) or response.reason_phrase}")


def _error(said: object) -> ShoalError:
    return PeerFailed(_words(said) or "the endpoint failed without a word")


def _words(said: object) -> str:
    """OpenAI's envelope: an object with a message; some servers send the bare text."""
    return str(said.get("message", "")) if isinstance(said, dict) else said if isinstance(said, str) else ""


def _broken(error: httpx2.HTTPError) -> NetworkError:
    words = str(error) or type(error).__name__
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return ConnectFailed(f"the endpoint does not answer: {words}")
    return ChannelClosed(f"the connection to the endpoint broke: {words}")
