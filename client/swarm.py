"""The public face of a swarm: join it, stream text from it, ask what it holds.

Composes store, trunk, holders and dispatch; the loop itself is `generate.py`. `Swarm.join` makes the real thing; the
constructor takes the parts, so that a test may build a swarm over memory channels and a virtual clock.
"""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import psutil
import torch

from shoal.client.answer import Answer, Watch
from shoal.client.engine.constraint import TokenConstraint
from shoal.client.engine.engine_settings import EngineSettings
from shoal.client.engine.generate import Engine, Recorder, Token
from shoal.client.engine.logprobs import TokenScore
from shoal.client.engine.sampler import Sampling
from shoal.client.routing.activations import Activations
from shoal.client.routing.dispatch import SwarmExperts
from shoal.client.routing.holders import Holders
from shoal.client.routing.model_id import ModelId, model_id
from shoal.client.routing.peers import PeerSnapshot, snapshot
from shoal.client.settings import ACTIVATIONS, CHANNELS, DTYPES, LAN_USES, SPECULATIONS, TRUNK_FORMATS, SwarmSettings
from shoal.client.single_process import open_trunk
from shoal.client.speculation.choice import Speculation, choose_drafter, drafts_by_mtp
from shoal.client.speculation.drafter import Drafter
from shoal.client.speculation.mtp_drafter import MtpDrafter
from shoal.client.swarm_health import SwarmHealth, swarm_health
from shoal.client.tally import Observers
from shoal.client.text.chat_template import ChatMessage
from shoal.client.text.tokenizer import Tokenizer
from shoal.client.trunk.linear_maker import TrunkFormat, require_kernels
from shoal.client.trunk.local_experts import LocalExperts
from shoal.client.trunk.model import Timing
from shoal.client.trunk.mtp import Mtp
from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.experts.locations import default_cache_dir
from shoal.experts.manifest_maker import Progress
from shoal.experts.store import ModelStore, open_store
from shoal.experts.worker import ComputeWorker, Worker
from shoal.protocol.errors import ConnectFailed, CoverageGap, InvalidRequest
from shoal.protocol.events import Observer, ignore
from shoal.protocol.identity import Identity, load_or_create_identity
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.invite import memberships
from shoal.protocol.messages import Rounding
from shoal.protocol.net.channel import Connector, Traffic
from shoal.protocol.net.direct import DirectConnector
from shoal.protocol.net.discovery import Discover
from shoal.protocol.net.entry import Entry, enter_swarm
from shoal.protocol.net.libp2p import Libp2pConnector
from shoal.protocol.net.mdns import lan_discovery

Prompt = str | Sequence[int] | Sequence[ChatMessage]
"""Text to continue, token ids, or chat messages for the model's template."""

ROUNDINGS = dict(zip(DTYPES, (Rounding.FP32, Rounding.BF16), strict=True))

START_RETRY_AFTER_S = 5.0
"""What a swarm with gaps at the start asks for: nodes that are starting announce themselves within seconds."""

KV_SHARE_OF_FREE_MEMORY = 0.5
"""Of the memory that is free once the trunk is loaded; see `SwarmSettings.kv_cache_bytes`."""


def unwrapped(connector: Connector) -> Connector:
    """Channels as they are."""
    return connector


class Swarm:
    """A model whose experts live on other machines."""

    def __init__(
        self,
        engine: Engine,
        holders: Holders,
        model: ModelId,
        layers: Sequence[LayerId],
        observers: Observers,
        clock: Callable[[], float],
    ) -> None:
        """clock: seconds, for durations."""
        self.engine = engine
        self._holders = holders
        self._model = model
        self._layers = layers
        self._observers = observers
        self._clock = clock

    @staticmethod
    @asynccontextmanager
    async def join(
        settings: SwarmSettings,
        observe: Observer = ignore,
        progress: Progress | None = None,
        wrap: Callable[[Connector], Connector] = unwrapped,
    ) -> AsyncIterator["Swarm"]:
        """Open the model, enter the swarm, connect to its holders; leave everything tidy at the end.

        observe: told of events, in the loop. progress: told of bytes, from a thread, while a model that came without a
        manifest is hashed. wrap: what stands between dispatch and the channels, for simulations of slow networks.

        Raises:
            InvalidRequest, ModelNotFound, IntegrityError: before anything is sent. ConnectFailed: no peer of `join`
            answered. CoverageGap: an expert has no usable holder, and `requires_coverage`.
        """
        _check(settings)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        identity = _identity(settings)
        observers = Observers(observe)
        async with AsyncExitStack() as stack:
            worker = ComputeWorker("trunk")
            stack.push_async_callback(worker.aclose)
            store = await open_store(settings.model, settings.cache_dir or default_cache_dir(), progress)
            stack.callback(store.close)
            rounding = ROUNDINGS[settings.dtype]
            model = model_id(store, rounding)
            entry = await stack.enter_async_context(
                enter_swarm(
                    identity, settings.join, model.root, time.time, is_client=True, discover=_discover(settings)
                )
            )
            connector = wrap(_connector(settings, identity, entry))
            stack.push_async_callback(connector.aclose)
            activations = Activations(settings.activations)
            layers = [layer for layer in store.spec.moe_layers if layer < store.spec.num_layers]
            draw = secrets.SystemRandom().random
            holders = Holders(
                entry.directory,
                connector,
                store.manifest,
                model,
                layers,
                observers,
                secrets.choice,
                time.perf_counter,
                draw,
                measures_links=activations is Activations.AUTO,
            )
            stack.push_async_callback(holders.aclose)
            trunk_format = TrunkFormat(settings.trunk_format)
            speculation = Speculation(settings.speculate)
            wants_mtp = speculation is not Speculation.OFF and await asyncio.to_thread(
                drafts_by_mtp, speculation, store, model.expert_bytes, psutil.virtual_memory().available
            )
            opening = asyncio.create_task(
                asyncio.to_thread(open_trunk, store, settings.model, rounding, worker, trunk_format, wants_mtp)
            )
            try:
                await holders.start()
            finally:
                await asyncio.wait({opening})  # the thread reads from the store, which closes after us
            opened = opening.result()
            experts = SwarmExperts(holders, model, observers, time.perf_counter, draw, settings.max_wait_s, activations)
            timing = Timing(0, time.perf_counter, observers)
            engine = Engine(
                opened.trunk,
                experts,
                opened.tokenizer,
                settings=_engine_settings(settings),
                timing=timing,
                drafter=_drafter(speculation, opened.mtp, store, rounding, worker),
            )
            stack.push_async_callback(engine.aclose)
            swarm = Swarm(engine, holders, model, layers, observers, time.perf_counter)
            if settings.requires_coverage:
                swarm.require_coverage()
            yield swarm

    def require_coverage(self) -> None:
        """Raise CoverageGap for the first layer with an expert that no usable holder has."""
        for layer, replicas in self.coverage().items():
            missing = [expert for expert, count in replicas.items() if count == 0]
            if missing:
                raise CoverageGap(layer, missing, START_RETRY_AFTER_S)

    def coverage(self) -> dict[LayerId, dict[ExpertId, int]]:
        """Usable replicas of every expert, by layer."""
        return {layer: self._holders.replicas(layer) for layer in self._layers}

    def peers(self) -> tuple[PeerSnapshot, ...]:
        """Every holder we know of, connected or not, ordered by peer id: a copy of this moment."""
        now = asyncio.get_running_loop().time()
        return tuple(snapshot(self._holders.holder(peer), now) for peer in sorted(self._holders.peers))

    async def ping(self, num_pings: int) -> None:
        """Ping every holder so many times, for `PeerSnapshot.ping_ms`; whoever does not answer is left out."""
        await self._holders.ping_all(num_pings)

    @property
    def expert_bytes(self) -> int:
        """Bytes of one routed expert as stored."""
        return self._model.expert_bytes

    @property
    def traffic(self) -> Traffic:
        """Bytes of frames to and from all holders so far."""
        return self._holders.traffic

    def health(self) -> SwarmHealth:
        """Coverage, holders and what the engine is busy with, from memory: cheap enough for a health check."""
        num_holders = sum(peer.is_usable for peer in self.peers())
        return swarm_health(self.coverage(), num_holders, self.engine.load)

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together: the model's context, or what of it fits `kv_cache_bytes`."""
        return self.engine.context_length

    @property
    def vocab_size(self) -> int:
        """Width of the model's logits, and of a constraint's masks; a tokenizer may know fewer tokens."""
        return self.engine.trunk.config.vocab_size

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return self.engine.end_token_ids

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Encodes, decodes and renders conversations (`thinking` and tools included); None if the model has none."""
        return self.engine.tokenizer

    @property
    def model_root(self) -> str:
        """Hex of the manifest root: which weights these are."""
        return self._model.root.hex()

    async def stream(
        self, prompt: Prompt, sampling: Sampling | None = None, constraint: TokenConstraint | None = None
    ) -> AsyncGenerator[Token, None]:
        """Generate token by token. constraint: a grammar that the answer keeps to, made for this answer.

        Raises:
            InvalidRequest, ContextLengthExceeded: before the first token. CoverageGap and the other ShoalErrors: in the
            middle, when no replica is left; tokens given so far stay true. NoTokenAllowed: the grammar's dead end.

        *Cancellation:* closing the iterator, or cancelling the task, cancels the requests in flight at their holders.
        """
        answer = self.engine.stream(self.prompt_ids(prompt), sampling or Sampling(), constraint)
        async with aclosing(answer) as tokens:
            async for token in tokens:
                yield token

    async def score(self, prompt: Prompt, top_logprobs: int = 0) -> list[TokenScore]:
        """How likely the model finds each token of a prompt, given those before it; the first has no likelihood.

        Raises and cancels as `stream`.
        """
        return await self.engine.score(self.prompt_ids(prompt), top_logprobs)

    async def generate(self, prompt: Prompt, sampling: Sampling | None = None) -> Answer:
        """Generate to the end. Raises and cancels as `stream`."""
        prompt_ids = self.prompt_ids(prompt)
        watch = self.watch(prompt_ids)
        async with aclosing(self.stream(prompt_ids, sampling)) as tokens:
            async for token in tokens:
                watch.add(token)
        return watch.answer()

    def watch(self, prompt_ids: Sequence[int]) -> "Watch":
        """Start to measure an answer whose tokens you stream yourself."""
        recorder = Recorder(len(prompt_ids), self._clock)
        return Watch(self._holders, self._observers, self._model.root, recorder)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt of any kind.

        Raises:
            InvalidRequest: text for a model without a tokenizer, or an empty prompt.
        """
        if not prompt:
            raise InvalidRequest("the prompt is empty")
        if not isinstance(prompt, str):
            token_ids = [item for item in prompt if isinstance(item, int)]
            messages = [item for item in prompt if not isinstance(item, int)]
            if token_ids and messages:
                raise InvalidRequest("a prompt is either token ids or chat messages")
            return token_ids or self._tokenizer.encode_chat(messages)
        return self._tokenizer.encode(prompt)

    @property
    def _tokenizer(self) -> Tokenizer:
        if self.engine.tokenizer is None:
            raise InvalidRequest("the model has no tokenizer.json; give token ids instead of text")
        return self.engine.tokenizer


def _engine_settings(settings: SwarmSettings) -> EngineSettings:
    kv_cache_bytes = settings.kv_cache_bytes
    if kv_cache_bytes is None:
        kv_cache_bytes = int(psutil.virtual_memory().available * KV_SHARE_OF_FREE_MEMORY)
    return EngineSettings(
        settings.max_streams, settings.max_waiting, kv_cache_bytes, prefill_ahead=settings.prefill_ahead
    )


def _drafter(
    speculation: Speculation, mtp: Mtp | None, store: ModelStore, rounding: Rounding, worker: Worker
) -> Drafter | None:
    """Who drafts; MTP's experts are read when they are first chosen."""
    if mtp is None:
        return choose_drafter(speculation)
    backend = choose_backend(KernelChoice.AUTO, torch.get_num_threads())
    return choose_drafter(speculation, MtpDrafter(mtp, LocalExperts(store, backend, rounding, worker)))


def _check(settings: SwarmSettings) -> None:
    if settings.dtype not in DTYPES:
        raise InvalidRequest(f"dtype {settings.dtype!r} is not one of {', '.join(DTYPES)}")
    if settings.trunk_format not in TRUNK_FORMATS:
        raise InvalidRequest(f"trunk format {settings.trunk_format!r} is not one of {', '.join(TRUNK_FORMATS)}")
    require_kernels(TrunkFormat(settings.trunk_format))
    if settings.channel not in CHANNELS:
        raise InvalidRequest(f"channel {settings.channel!r} is not one of {', '.join(CHANNELS)}")
    EngineSettings(
        settings.max_streams, settings.max_waiting, settings.kv_cache_bytes or 1, prefill_ahead=settings.prefill_ahead
    )
    if settings.lan not in LAN_USES:
        raise InvalidRequest(f"lan {settings.lan!r} is not one of {', '.join(LAN_USES)}")
    if settings.speculate not in SPECULATIONS:
        raise InvalidRequest(f"speculate is {settings.speculate!r}, not one of {', '.join(SPECULATIONS)}")
    if settings.activations not in ACTIVATIONS:
        raise InvalidRequest(f"activations are {settings.activations!r}, not one of {', '.join(ACTIVATIONS)}")
    if not settings.join and settings.lan != "any":
        raise InvalidRequest("join is empty: name a peer's address or an invite token")


def _discover(settings: SwarmSettings) -> Discover | None:
    """The LAN, as far as the settings allow it.

    Raises:
        ConnectFailed: there is nothing else to join by, and this machine has no LAN.
    """
    is_wanted = settings.lan == "any" or (settings.lan == "members" and memberships(settings.join))
    discover = lan_discovery("0.0.0.0", os.urandom) if is_wanted else None
    if discover is None and not settings.join:
        raise ConnectFailed("no peer is named, and this machine is on no LAN (a private IPv4 network)")
    return discover


def _identity(settings: SwarmSettings) -> Identity:
    entropy = os.urandom(32)
    return load_or_create_identity(settings.identity, entropy) if settings.identity else Identity.from_seed(entropy)


def _connector(settings: SwarmSettings, identity: Identity, entry: Entry) -> Connector:
    if settings.channel == "libp2p":
        return Libp2pConnector(identity, entry.p2pd, os.urandom, entry.membership)
    return DirectConnector(identity, os.urandom, entry.membership)
