"""The three connections of `shoal chat`: a swarm that is up, one that is started for the occasion, an endpoint.

Each is an `Opener` of the chat's session: a context that connects, says what it is doing, and leaves nothing behind.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing.context import ForkServerContext
from pathlib import Path

from shoal.client.chat.openai_chat import open_endpoint
from shoal.client.engine.engine_settings import PREFILL_AHEAD
from shoal.client.translate import _
from shoal.client.tui.session import Connection, Opener, Tell
from shoal.protocol.events import Observer


@dataclass(frozen=True, slots=True)
class SwarmWords:
    """What the command line says of a swarm."""

    model: Path
    model_name: str
    join: tuple[str, ...]
    dtype: str
    channel: str
    lan: str = "members"
    speculate: str = "off"
    activations: str = "exact"
    prefill_ahead: int = PREFILL_AHEAD
    threads: int = 0
    named: Path | None = None
    """The model that the user named; None: the token's."""


def endpoint(url: str, api_key: str | None, model: str | None) -> Opener:
    """`--api URL`."""

    @asynccontextmanager
    async def opener(observe: Observer, tell: Tell) -> AsyncIterator[Connection]:
        tell(_("asking {url} for its models").format(url=url))
        async with open_endpoint(url, api_key, model) as backend:
            yield Connection(backend)

    return opener


def joined(words: SwarmWords) -> Opener:
    """`--join TOKEN`."""

    @asynccontextmanager
    async def opener(observe: Observer, tell: Tell) -> AsyncIterator[Connection]:
        tell(_("loading"))
        await _load("shoal.client.swarm")
        async with _joined(await _found(words, tell), words.join, observe, tell) as connection:
            yield connection

    return opener


def demonstration(words: SwarmWords, context: ForkServerContext, num_nodes: int, replicas: int) -> Opener:
    """`--demo`: node processes of our own, ended with the chat."""

    @asynccontextmanager
    async def opener(observe: Observer, tell: Tell) -> AsyncIterator[Connection]:
        async with AsyncExitStack() as stack:
            invite = await stack.enter_async_context(local_nodes(words, context, num_nodes, replicas, tell))
            yield await stack.enter_async_context(_joined(words, (invite,), observe, tell))

    return opener


@asynccontextmanager
async def local_nodes(
    words: SwarmWords, context: ForkServerContext, num_nodes: int, replicas: int, tell: Tell
) -> AsyncIterator[str]:
    """Node processes on this machine while the `with` lasts; gives the token that joins them."""
    tell(_("starting {number} nodes on this machine").format(number=num_nodes))
    await _load("shoal.simulations.local")
    from shoal.experts.locations import default_cache_dir
    from shoal.experts.store import open_store
    from shoal.simulations.local import LocalSwarmSettings, local_swarm

    with await open_store(words.model, default_cache_dir(), _hashing(tell)) as store:
        num_experts = store.spec.router.num_experts
    async with local_swarm(context, LocalSwarmSettings(words.model, num_nodes, replicas), num_experts) as nodes:
        yield nodes[0].info.invite


@asynccontextmanager
async def _joined(words: SwarmWords, join: tuple[str, ...], observe: Observer, tell: Tell) -> AsyncIterator[Connection]:
    from shoal.cli.tcp_words import tcp_words
    from shoal.client.chat.swarm_chat import SwarmChat
    from shoal.client.settings import SwarmSettings
    from shoal.client.swarm import Swarm

    tell(_("joining the swarm"))
    settings = SwarmSettings(
        words.model,
        join,
        words.dtype,
        words.channel,
        threads=words.threads,
        lan=words.lan,
        speculate=words.speculate,
        activations=words.activations,
        prefill_ahead=words.prefill_ahead,
    )
    async with Swarm.join(settings, observe, _hashing(tell)) as swarm:
        notices = tcp_words(swarm.peers(), words.channel)
        yield Connection(SwarmChat(swarm, words.model_name), swarm, notices)


async def _found(words: SwarmWords, tell: Tell) -> SwarmWords:
    """With the model that was named, or the token's, which may have to be fetched first."""
    from shoal.cli.reports import size
    from shoal.cli.token_model import Telling, client_model, shown_name

    def show(stage: str, done_bytes: int, total_bytes: int) -> None:
        tell(f"{stage}: {size(done_bytes)} / {size(total_bytes)}")

    directory = await client_model(words.named, words.join, words.lan, Telling(show, tell))
    return replace(words, model=directory, model_name=shown_name(words.named, directory, words.model_name))


async def _load(module: str) -> None:
    """Import on a thread: torch takes a second or two, and the screen should not stand still meanwhile."""
    await asyncio.to_thread(import_module, module)


def _hashing(tell: Tell) -> Callable[[int, int], None]:
    def progress(done_bytes: int, total_bytes: int) -> None:
        tell(_("hashing the model, once: {percent:.0f} %").format(percent=100 * done_bytes / max(1, total_bytes)))

    return progress
