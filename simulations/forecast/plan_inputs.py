"""What a plan is made from: a model's config, and machines from a file or from a swarm that runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil

from shoal.client import Swarm, SwarmSettings
from shoal.client.routing.peers import PeerSnapshot
from shoal.client.trunk.linear_maker import TrunkFormat
from shoal.experts.family import model_spec, read_config
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.ids import LayerId
from shoal.protocol.messages import WeightFormat
from shoal.simulations.forecast.compute import Calibration
from shoal.simulations.forecast.deepseek_v3 import DEEPSEEK_V3
from shoal.simulations.forecast.geography import MBIT_BYTES
from shoal.simulations.forecast.machines_file import UNLIMITED, read_machines
from shoal.simulations.forecast.peers import Held, Link, Peer, TrunkHost
from shoal.simulations.forecast.plan import PlanSettings
from shoal.simulations.forecast.shape import ModelShape, model_shape

NUM_PINGS = 10
"""Of each holder; the shortest counts, for a busy machine holds most of them up."""


@dataclass(frozen=True, slots=True)
class PlanWords:
    """What a user said."""

    model: Path | None
    """A checkpoint's directory; None: DeepSeek-V3.1, from its published numbers."""
    weights: str | None
    trunk_format: str
    streams: Sequence[int]
    calibration: Calibration
    up_mbit_per_s: float | None = None
    """Of this machine's link; None: as the file says, else without limit."""
    down_mbit_per_s: float | None = None

    def linked(self, trunk: TrunkHost) -> TrunkHost:
        """The trunk host, with this machine's link where it was said."""
        up, down = self.up_mbit_per_s, self.down_mbit_per_s
        link = Link(
            trunk.link.up if up is None else up * MBIT_BYTES, trunk.link.down if down is None else down * MBIT_BYTES
        )
        return replace(trunk, link=link)


def from_file(words: PlanWords, path: Path) -> PlanSettings:
    """Machines of a file, that choose what to hold.

    Raises:
        InvalidRequest, ModelNotFound, CheckpointError: the model or the file is not what it should be.
    """
    peers, trunk = read_machines(path, words.calibration, psutil.virtual_memory().total)
    return PlanSettings(_shape(words), words.linked(trunk), peers, words.calibration, words.streams)


async def from_swarm(words: PlanWords, join: tuple[str, ...]) -> PlanSettings:
    """Holders of a swarm, with what they hold and the round trips to them; joins it for a moment, as a client.

    Their links are not known and count as unlimited, which the report says; their machines as the calibrated one.

    Raises:
        InvalidRequest: no checkpoint directory: a swarm is known by its model's hash. ShoalError: as `Swarm.join`.
    """
    if words.model is None:
        raise InvalidRequest("a running swarm is found by its model: give --model DIR")
    shape, spec = _shape(words), model_spec(read_config(words.model))
    settings = SwarmSettings(words.model, join, requires_coverage=False)
    async with Swarm.join(settings) as swarm:
        await swarm.ping(NUM_PINGS)
        holders = [holder for holder in swarm.peers() if holder.rtt_ms is not None]
    if not holders:
        raise InvalidRequest("this swarm has no holder that answers")
    link, rates = Link(UNLIMITED, UNLIMITED), words.calibration.rates()
    layers = {layer: place for place, layer in enumerate(each for each in spec.moe_layers if each < spec.num_layers)}
    peers = [Peer(each.peer, _rtt_s(each), link, rates, each.num_experts * shape.expert_bytes) for each in holders]
    trunk = TrunkHost(link, rates, psutil.virtual_memory().total)
    held = [_held(each, layers, spec.router.num_experts) for each in holders]
    return PlanSettings(shape, words.linked(trunk), peers, words.calibration, words.streams, held)


def _rtt_s(holder: PeerSnapshot) -> float:
    """The shortest ping: the first exchange, the challenge, carries an expert's work and whatever held it up."""
    rtts_ms = [each for each in (holder.ping_ms, holder.rtt_ms) if each is not None]
    return min(rtts_ms, default=0.0) / 1000


def _held(holder: PeerSnapshot, layers: dict[LayerId, int], num_experts: int) -> Held:
    places = [
        layers[layer] * num_experts + expert
        for layer, experts in holder.holdings.items()
        if layer in layers
        for expert in experts
        if expert < num_experts
    ]
    return np.array(sorted(places), dtype=np.int64)


def _shape(words: PlanWords) -> ModelShape:
    config = DEEPSEEK_V3 if words.model is None else read_config(words.model)
    name = "DeepSeek-V3.1" if words.model is None else words.model.name
    return model_shape(config, name, _weight_format(words.weights, config), TrunkFormat(words.trunk_format))


def _weight_format(named: str | None, config: dict[str, object]) -> WeightFormat:
    if named is None:
        return WeightFormat.FP8_BLOCK if config.get("quantization_config") else WeightFormat.BF16
    known = {each.name.lower(): each for each in WeightFormat}
    if named not in known:
        raise InvalidRequest(f"{named!r} is no weight format; there are {', '.join(known)}")
    return known[named]
