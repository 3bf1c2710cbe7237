"""A model that says what a test wrote down, and a gateway around it without a socket."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count

import httpx2
from starlette.types import ASGIApp, Message

from shoal.client.api.app import create_app
from shoal.client.api.assemble import make_services
from shoal.client.api.metrics import Metrics
from shoal.client.api.model import Coverage
from shoal.client.api.sampling_defaults import SamplingDefaults
from shoal.client.api.services import Clocks, Services
from shoal.client.api.settings import ApiSettings
from shoal.client.engine.constraint import TokenConstraint
from shoal.client.engine.generate import FinishReason, Token
from shoal.client.engine.logprobs import TokenScore
from shoal.client.engine.sampler import Sampling
from shoal.client.text.tokenizer import Tokenizer
from shoal.protocol.errors import ContextLengthExceeded, ShoalError
from shoal.simulations.demo_model import MODEL_DIRECTORY

NAME = "fake"
MAX_MODEL_LEN = 2048
ASK = {"messages": [{"role": "user", "content": "Hello"}]}


@cache
def demo_tokenizer() -> Tokenizer:
    """Read once: a test opens many gateways."""
    return Tokenizer.load(MODEL_DIRECTORY)


@dataclass
class FakeModel:
    """Says `text`, one token at a time; `fails_after` tokens it raises `error`; `gate`, if any, lets tokens through."""

    text: str = "Once upon a time."
    fails_after: int | None = None
    error: ShoalError | None = None
    gate: asyncio.Semaphore | None = None
    held: Coverage = field(default_factory=lambda: Coverage(8, 0, None, 2))
    asked: list[tuple[list[int], Sampling]] = field(default_factory=list)
    num_tokens: int = 0
    """Generated, for all sequences."""
    num_streams: int = 0
    """Open now."""
    root: str = "ab" * 32
    vocab_size: int = 2048
    max_model_len: int = MAX_MODEL_LEN
    end_token_ids: Sequence[int] = (1,)
    tokenizer: Tokenizer | None = field(default_factory=demo_tokenizer)

    def check(self, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        num_tokens = len(prompt_ids) + (sampling.max_tokens or 1)
        if num_tokens > self.max_model_len:
            raise ContextLengthExceeded(num_tokens, self.max_model_len)

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, constraint: TokenConstraint | None = None
    ) -> AsyncGenerator[Token, None]:
        self.asked.append((list(prompt_ids), sampling))
        self.num_streams += 1
        try:
            assert self.tokenizer is not None
            ids = self.tokenizer.encode(self.text)[: sampling.max_tokens]
            detokenizer = self.tokenizer.detokenizer()
            for index, token_id in enumerate(ids):
                await (self.gate.acquire() if self.gate is not None else asyncio.sleep(0))  # as a real one, lets go
                if self.error is not None and index == self.fails_after:
                    raise self.error
                self.num_tokens += 1
                piece = detokenizer.push(token_id)
                is_last = index + 1 == len(ids)
                reason = FinishReason.STOP if len(ids) < (sampling.max_tokens or 10**6) else FinishReason.LENGTH
                likeliest = ((token_id, -0.5), (7, -1.5))[: sampling.top_logprobs]
                yield Token(token_id, piece, index, -0.5, reason if is_last else None, likeliest)
        finally:
            self.num_streams -= 1

    async def score(self, prompt_ids: Sequence[int], top_logprobs: int = 0) -> list[TokenScore]:
        first, *others = prompt_ids
        return [TokenScore(first, None), *(TokenScore(each, -2.0, ((9, -1.0),)[:top_logprobs]) for each in others)]

    def coverage(self) -> Coverage:
        return self.held


async def until(is_so: Callable[[], bool]) -> None:
    """Let others run until it is so."""
    while not is_so():  # noqa: ASYNC110  # what is waited for happens inside the code under test
        await asyncio.sleep(0.001)


@dataclass
class Gateway:
    """The application around a model, and the way in."""

    model: FakeModel
    services: Services
    app: ASGIApp

    def client(self, **headers: str) -> httpx2.AsyncClient:
        transport = httpx2.ASGITransport(app=self.app)  # type: ignore[arg-type]
        return httpx2.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)

    async def post(self, path: str, body: object, **headers: str) -> httpx2.Response:
        async with self.client(**headers) as client:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return await client.post(path, content=content)

    async def get(self, path: str, **headers: str) -> httpx2.Response:
        async with self.client(**headers) as client:
            return await client.get(path)

    async def chat(self, **fields: object) -> httpx2.Response:
        return await self.post("/v1/chat/completions", ASK | fields)

    async def complete(self, **fields: object) -> httpx2.Response:
        return await self.post("/v1/completions", {"prompt": "Hello"} | fields)


def gateway(model: FakeModel | None = None, settings: ApiSettings | None = None) -> Gateway:
    """A gateway; inside an event loop. Its clock stands and its ids count."""
    model, settings, ids = model or FakeModel(), settings or ApiSettings(), count(1)
    clocks = Clocks(lambda: 1_790_000_000.0, lambda: 0.0, lambda size: next(ids).to_bytes(size, "big"))
    services = make_services(model, NAME, SamplingDefaults(), settings, clocks, Metrics())
    return Gateway(model, services, create_app(services, settings))


def events(response: httpx2.Response) -> list[dict[str, object]]:
    """The events of a stream without its `[DONE]`, which must be there unless the last is an error."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    told = [json.loads(line) for line in lines if line != "[DONE]"]
    assert (lines[-1] == "[DONE]") != ("error" in told[-1])
    return told


@dataclass
class Caller:
    """A client on the other side of ASGI that reads as it likes and leaves when it likes."""

    app: ASGIApp
    body: bytes
    path: str = "/v1/chat/completions"
    sent: list[Message] = field(default_factory=list)
    has_left: asyncio.Event = field(default_factory=asyncio.Event)
    may_send: asyncio.Semaphore | None = None
    """Lets so many messages through; None: all."""

    async def run(self) -> None:
        """Make the request; ends when the application has."""
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": self.path, "raw_path": self.path.encode(), "query_string": b"", "root_path": "",
            "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
        }  # fmt: skip
        asked = False

        async def receive() -> Message:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": self.body, "more_body": False}
            await self.has_left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if self.may_send is not None:
                await self.may_send.acquire()
            self.sent.append(message)

        await self.app(scope, receive, send)

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()
