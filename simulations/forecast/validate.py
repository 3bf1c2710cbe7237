"""The cost model held against runs: the real client and nodes under a virtual clock, on links of known delay and rate.

A virtual clock counts what the network, the queues and the kernels (a constant a call here) take, to the microsecond,
and nothing else: it tests the model's structure (who waits for whom, what shares a link, how many holders are touched)
without this machine's noise. It cannot test what our own code costs, nor TCP, whose part of the model is left out here;
`shoal simulate validate --real` (`real/`) does.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from shoal.client.engine.generate import Engine
from shoal.client.engine.sampler import Sampling
from shoal.client.routing.choose import choose
from shoal.client.trunk.linear_maker import TrunkFormat
from shoal.client.trunk.local_experts import LocalExperts
from shoal.experts.worker import InlineWorker
from shoal.node.holdings.assignment import Holding
from shoal.protocol.events import ignore
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.net.channel import Handler, Reply, Request
from shoal.simulations.forecast.compute import Calibration, Rates, shipped_calibration
from shoal.simulations.forecast.forecast import Swarm, Tally, forecast_prefill, forecast_streams
from shoal.simulations.forecast.layer_time import Conditions
from shoal.simulations.forecast.peers import LayerView, Link, Peer, TrunkHost
from shoal.simulations.forecast.routing import Choices, Routes
from shoal.simulations.forecast.shape import FP32_BYTES, model_shape
from shoal.simulations.virtual.loop import run_virtual
from shoal.simulations.virtual.model import SimulatedModel
from shoal.simulations.virtual.node import ROW_COST_S
from shoal.simulations.virtual.soak import demo_model_in_memory
from shoal.simulations.virtual.world import World, open_world

LIMIT_S = 3600.0
ENDLESS = 1e30
FREE = Rates(ENDLESS, ENDLESS, layer_s=0.0)
NUM_TOKENS = 80
"""Of every answer: enough that all are under way together for a while."""

NUM_RECORDED = 8
"""Answers that routes are recorded of."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Setting:
    """A swarm and what is asked of it."""

    name: str
    rtts_ms: Sequence[float]
    """To each holder. The experts are dealt to them in equal parts; see `replicas`."""
    replicas: int = 1
    """Holders of each part: the holders are that many times as many as the parts."""
    jitter: float = 0.0
    mbit_per_s: float = 0.0
    """Of every machine, both ways; 0: endless."""
    slowness: float = 1.0
    """A call takes this many times 0.2 ms."""
    streams: int = 1
    prompt: int = 0
    """Tokens; more than 0: the time to the first token is what is measured."""
    stall_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """One setting, measured and predicted."""

    setting: str
    measured_ms: float
    """Of a pass, or to the first token."""
    predicted_ms: float

    @property
    def error(self) -> float:
        """Relative, of the prediction."""
        return self.predicted_ms / self.measured_ms - 1


SETTINGS = (
    Setting("1 holder, 10 ms", (10,)),
    Setting("2 holders, 10 ms", (10, 10)),
    Setting("4 holders, 10 ms, jitter 20 %", (10,) * 4, jitter=0.2),
    Setting("8 holders, 50 ms, jitter 50 %", (50,) * 8, jitter=0.5),
    Setting("2 holders at 5 ms, 2 at 50 ms", (5, 50, 5, 50)),
    Setting("4 holders, 1 ms, calls of 5 ms", (1,) * 4, slowness=25),
    Setting("2 holders, 10 ms, 5 Mbit/s", (10, 10), mbit_per_s=5),
    Setting("4 holders, 10 ms, 5 Mbit/s, 8 streams", (10,) * 4, mbit_per_s=5, streams=8),
    Setting("4 holders, 20 ms, 20 Mbit/s, 32 streams", (20,) * 4, mbit_per_s=20, streams=32),
    Setting("4 holders, 10 ms, 2 replicas, 1 call in 100 ten times", (10,) * 4, replicas=2, stall_share=0.01),
    Setting("2 holders, 20 ms, 20 Mbit/s, prompt of 512", (20, 20), mbit_per_s=20, prompt=512),
    Setting("4 holders, 50 ms, 100 Mbit/s, prompt of 256", (50,) * 4, mbit_per_s=100, prompt=256),
    Setting("4 holders, 50 ms, 100 Mbit/s, prompt of 1,024", (50,) * 4, mbit_per_s=100, prompt=1024),
    Setting("2 holders, 100 ms, 1000 Mbit/s, prompt of 1,536", (100,) * 2, mbit_per_s=1000, prompt=1536),
)


def validate_all(progress: Progress) -> list[Comparison]:
    """Measure and predict all settings with the demonstration model."""
    torch.set_num_threads(1)
    with demo_model_in_memory() as model:
        return validate(model, SETTINGS, progress)


def validate(model: SimulatedModel, settings: Sequence[Setting], progress: Progress) -> list[Comparison]:
    """Measure and predict each setting."""
    rows, routes = [], recorded_routes(model)
    for done, setting in enumerate(settings, start=1):
        measured_s = measure(model, setting)
        rows.append(Comparison(setting.name, 1000 * measured_s, 1000 * predict(model, setting, routes)))
        progress("settings", done, len(settings))
    return rows


def measure(model: SimulatedModel, setting: Setting) -> float:
    """Virtual seconds of a pass, or to the first token of a prompt."""
    return run_virtual(lambda: _measure(model, setting), random.Random(0), LIMIT_S)


def predict(model: SimulatedModel, setting: Setting, routes: Routes) -> float:
    """The same by the cost model, which knows the setting, what the model's tokens choose, and nothing of the run."""
    swarm = _swarm(model, setting, routes)
    if setting.prompt:
        return forecast_prefill(swarm, setting.prompt, 0, Tally()).time_s
    return forecast_streams(swarm, setting.streams, 0, Tally()).token_ms / 1000


def recorded_routes(model: SimulatedModel) -> Routes:
    """What the tokens of other answers than the measured ones choose, in one process.

    An input, like the popularity that was recorded of DeepSeek-V3: drawn routes touch more holders than those of
    the demonstration model.
    """
    recorder = _Recorder(model)
    run_virtual(lambda: recorder.listen(model), random.Random(0), LIMIT_S)
    return Routes([np.concatenate(recorder.chosen[layer]) for layer in model.layers])


class _Recorder:
    """`RoutedExperts` of one process that notes what is chosen."""

    def __init__(self, model: SimulatedModel) -> None:
        self.chosen: dict[LayerId, list[Choices]] = {layer: [] for layer in model.layers}
        self._experts = LocalExperts(model.store, model.backend, model.rounding, InlineWorker())

    async def __call__(self, layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        """See `RoutedExperts`."""
        self.chosen[layer].append(topk_idx.numpy().copy())
        return await self._experts(layer, x, topk_idx, topk_weights)

    async def listen(self, model: SimulatedModel) -> None:
        """Record some answers."""
        engine = Engine(model.opened.trunk, self, model.opened.tokenizer)
        vocab_size = engine.trunk.config.vocab_size
        try:
            for place in range(NUM_RECORDED):
                ids, sampling = _question(vocab_size, 1000 + place, 3, NUM_TOKENS)
                async for _ in engine.stream(ids, sampling):
                    pass
        finally:
            await engine.aclose()


async def _measure(model: SimulatedModel, setting: Setting) -> float:
    rng, holdings = random.Random(1), _holdings(model, setting)
    wire = _Wire(setting, rng)

    def stalling(place: int, honest: Handler) -> Handler:
        async def handle(request: Request) -> Reply:
            if rng.random() < setting.stall_share:
                await asyncio.sleep(9 * (setting.rtts_ms[place] / 1000 + ROW_COST_S))
            return await honest(request)

        return handle

    skews = [0.0] * len(holdings)
    async with open_world(model, holdings, skews, rng, wire.delay_s, wire.tamper, stalling, ignore) as world:
        for place, node in enumerate(world.nodes):
            node.slowness = setting.slowness
            wire.rtts_s[node.identity.peer] = setting.rtts_ms[place] / 1000
        await _answer(world, 0, 8)  # round trips are known before anything is counted
        if setting.prompt:
            return (await _answer(world, 0, 1, setting.prompt))[0]
        times = await asyncio.gather(*(_answer(world, place, NUM_TOKENS) for place in range(setting.streams)))
        return _pass_s(times)


def _pass_s(times: Sequence[Sequence[float]]) -> float:
    """Mean time between two tokens of an answer while all the answers are under way."""
    begin, end = max(each[0] for each in times), min(each[-1] for each in times)
    counted = [at for at in times[0] if begin <= at <= end]
    return (counted[-1] - counted[0]) / (len(counted) - 1)


async def _answer(world: World, place: int, num_tokens: int, prompt: int = 3) -> list[float]:
    """When each token came, in seconds since the question."""
    loop, vocab_size = asyncio.get_running_loop(), world.engine.trunk.config.vocab_size
    started, times = loop.time(), list[float]()
    ids, sampling = _question(vocab_size, place, prompt, num_tokens)
    async for _ in world.swarm.stream(ids, sampling):
        times.append(loop.time() - started)
    return times


def _question(vocab_size: int, place: int, prompt: int, num_tokens: int) -> tuple[list[int], Sampling]:
    ids = [(place * 7919 + i * 104_729) % vocab_size for i in range(prompt)]
    return ids, Sampling(temperature=1.0, seed=place, max_tokens=num_tokens, ignore_eos=True)


def _holdings(model: SimulatedModel, setting: Setting) -> list[Holding]:
    count = len(setting.rtts_ms)
    bounds = _bounds(model.store.spec.router.num_experts, count // setting.replicas)
    parts = [tuple(map(ExpertId, range(low, high))) for low, high in bounds]
    return [{layer: parts[place % len(parts)] for layer in model.layers} for place in range(count)]


def _bounds(num_experts: int, num_parts: int) -> list[tuple[int, int]]:
    edges = [num_experts * part // num_parts for part in range(num_parts + 1)]
    return list(pairwise(edges))


class _Wire:
    """Delays of a network whose machines have a link each: what is sent waits for what was sent before."""

    def __init__(self, setting: Setting, rng: random.Random) -> None:
        self.rtts_s: dict[PeerId, float] = {}
        self._jitter = setting.jitter
        self._bytes_per_s = setting.mbit_per_s * 1e6 / 8 or ENDLESS
        self._rng = rng
        self._free_at: dict[tuple[PeerId, str], float] = {}
        self._size = 0

    def tamper(self, sender: PeerId, receiver: PeerId, data: bytes) -> Sequence[bytes]:
        """Notes the size of what `delay_s` is asked about next."""
        self._size = len(data)
        return (data,)

    def delay_s(self, sender: PeerId, receiver: PeerId) -> float:
        """Until the last byte has passed the sender's link, the way, and the receiver's link."""
        now, size_s = asyncio.get_running_loop().time(), self._size / self._bytes_per_s
        self._size = 0
        sent_at = max(now, self._free_at.get((sender, "up"), 0.0)) + size_s
        self._free_at[sender, "up"] = sent_at
        rtt_s = self.rtts_s.get(sender) or self.rtts_s.get(receiver) or 0.0
        there_at = sent_at + rtt_s / 2 * (1 + self._jitter * self._rng.random())
        read_at = max(there_at, self._free_at.get((receiver, "down"), 0.0) + size_s)
        self._free_at[receiver, "down"] = read_at
        return read_at - now


def _swarm(model: SimulatedModel, setting: Setting, routes: Routes) -> Swarm:
    """The setting as the cost model sees it."""
    store = model.store
    shape = model_shape(store.config, "demo", store.weight_format, TrunkFormat.DENSE, FP32_BYTES)
    rate = setting.mbit_per_s * 1e6 / 8 or ENDLESS
    link, names = Link(rate, rate), [PeerId(f"holder-{place}") for place in range(len(setting.rtts_ms))]
    peers = [
        Peer(name, rtt_ms / 1000, link, FREE, 0, ROW_COST_S * setting.slowness)
        for name, rtt_ms in zip(names, setting.rtts_ms, strict=True)
    ]
    layer = model.layers[0]
    held = {name: frozenset(holding[layer]) for name, holding in zip(names, _holdings(model, setting), strict=True)}
    view = LayerView(held, {peer.name: peer.rtt_s for peer in peers})
    return Swarm(
        shape,
        TrunkHost(link, FREE, 0),
        peers,
        [view] * len(model.layers),
        routes,
        _nothing_of_ours(),
        Conditions(setting.jitter, setting.stall_share, is_tcp=False),
        context=0,
        choose=choose,
    )


def _nothing_of_ours() -> Calibration:
    """Under a virtual clock our own code takes no time."""
    shipped = shipped_calibration()
    return Calibration("virtual clock", 1.0, 1.0, shipped.expert_ms, shipped.expert_bytes, 0.0, 0.0, 0.0)


def table(rows: Sequence[Comparison]) -> str:
    """The comparisons as Markdown."""
    lines = ["| setting | measured ms | predicted ms | error |", "|---|---|---|---|"]
    lines += [f"| {row.setting} | {row.measured_ms:.1f} | {row.predicted_ms:.1f} | {row.error:+.1%} |" for row in rows]
    return "\n".join(lines)
