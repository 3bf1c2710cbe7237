"""What a machine takes for an expert and for a trunk: a roofline of its limits, times how far our kernels stay off it.

`shoal bench calibrate` measures this machine's limits (bytes read, multiply-accumulates) and the kernels' times; their
ratio to the roofline, by format and rows, is taken for other machines too, whose limits a scenario states. That is the
model's boldest step: docs/SIMULATE.md says where it fails.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import msgspec
import numpy as np

from shoal.protocol.errors import InvalidRequest
from shoal.protocol.limits import MAX_TOKENS_PER_FRAME
from shoal.simulations.forecast.shape import ModelShape

Times = np.ndarray[tuple[int], np.dtype[np.float64]]
"""Seconds by number of rows, 0..MAX_TOKENS_PER_FRAME."""

SHIPPED = "calibration.json"

NEAREST_FORMAT = {"f32": "bf16"}
"""A format that nobody calibrates borrows another's distance from the roofline."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What `shoal bench calibrate` writes."""

    source: str
    """Where and how it was measured: machine, commit, conditions."""
    read_gb_per_s: float
    """Limits of the machine, measured in the same run."""
    multiply_tflop_per_s: float
    expert_ms: Mapping[str, Mapping[str, float]]
    """Milliseconds of one expert call, by format and by rows."""
    expert_bytes: int
    """In bf16: what the calls were about."""
    exchange_us: float
    """Ours per exchange, both sides together, beside the wire's RTT: frames, TLS, event loops."""
    exchange_us_per_kib: float
    """The same per KiB of request and answer."""
    dispatch_us: float
    """Ours per layer at the client: tokens to holders and back, futures, the combined sum."""
    holder_share: float = 0.5
    """Of what an exchange costs: the holder's."""
    holder_share_of_kib: float = 0.5
    """The same of what its bytes cost."""
    layer_us: float = 150.0
    """Of a trunk's layer beside its matrices: norms, softmax, routing, starting kernels (a guess for all machines where
    it was not measured)."""
    stream_us: float = 0.0
    """Of a pass, for each stream that decodes in it: sampling, its own attention."""
    row_us: float = 0.0
    """Of a pass, for each row of a prompt, beside arithmetic at the machine's limit."""
    context_factor: float = 1.0
    """How many times longer attention to the context takes than the machine's limits have it."""
    after_wait: tuple["AfterWait", ...] = ()
    """What waiting costs beside its own time; nothing where it was not measured."""

    def rates(self) -> "Rates":
        """This machine."""
        layer_s = self.layer_us / 1e6
        return Rates(self.read_gb_per_s * 1e9, self.multiply_tflop_per_s * 1e12 / 2, layer_s, self.context_factor)

    def after_wait_s(self, wait_s: float) -> tuple[float, float]:
        """What a layer takes longer at the client, and a request at its holder, after so long a wait."""
        waits = [0.0, *(each.wait_ms / 1000 for each in self.after_wait)]
        layers = [0.0, *(each.layer_us / 1e6 for each in self.after_wait)]
        calls = [0.0, *(each.call_us / 1e6 for each in self.after_wait)]
        return float(np.interp(wait_s, waits, layers)), float(np.interp(wait_s, waits, calls))


@dataclass(frozen=True, slots=True)
class AfterWait:
    """Processes that have waited find cold caches and a core that sleeps: the same work takes longer."""

    wait_ms: float
    layer_us: float
    """Longer, of a layer at the client, the trunk's part included."""
    call_us: float
    """Longer, of a request at its holder."""


@dataclass(frozen=True, slots=True)
class Rates:
    """A machine's limits, and what every step costs whatever its size."""

    read_bytes_per_s: float
    macs_per_s: float
    layer_s: float = 0.00015
    """See `Calibration.layer_us`."""
    context_factor: float = 1.0
    """See there."""


def shipped_calibration() -> Calibration:
    """The one that comes with the program."""
    return _parse(files(__package__).joinpath(SHIPPED).read_bytes(), SHIPPED)


def read_calibration(path: Path | None) -> Calibration:
    """A file of `shoal bench calibrate`; None: the shipped one.

    Raises:
        InvalidRequest: it is not one. OSError: it cannot be read.
    """
    return shipped_calibration() if path is None else _parse(path.read_bytes(), str(path))


def calibration_text(calibration: Calibration) -> str:
    """As a file has it."""
    return json.dumps(msgspec.to_builtins(calibration), indent=2) + "\n"


def expert_times(calibration: Calibration, rates: Rates, model: ModelShape) -> Times:
    """Seconds of one expert of the model on a machine, by rows."""
    rows = np.arange(MAX_TOKENS_PER_FRAME + 1)
    times = _roofline(rates, model.expert_bytes, model.expert_macs * rows) * _distance(calibration, model, rows)
    times[0] = 0.0
    return times


def trunk_times(calibration: Calibration, rates: Rates, model: ModelShape) -> Times:
    """Seconds of a pass through all of the trunk but shared experts, by rows; attention to a context comes on top."""
    rows = np.arange(MAX_TOKENS_PER_FRAME + 1)
    shared = model.trunk.shared_experts
    share = 1 - shared / model.trunk_bytes_read
    matrices = _roofline(rates, model.trunk_bytes_read - shared, round(model.trunk_macs * share) * rows)
    return matrices * _distance(calibration, model, rows) + model.num_layers * rates.layer_s


def shared_expert_times(calibration: Calibration, rates: Rates, model: ModelShape) -> Times:
    """Seconds of one layer's shared experts, by rows."""
    rows = np.arange(MAX_TOKENS_PER_FRAME + 1)
    size = model.trunk.shared_experts // model.num_moe_layers
    macs = round(model.trunk_macs * model.trunk.shared_experts / model.trunk_bytes_read) // model.num_moe_layers
    return _roofline(rates, size, macs * rows) * _distance(calibration, model, rows)


def context_s(rates: Rates, model: ModelShape, num_rows: int, context: int) -> float:
    """Attention of a pass to what is in the caches: every row has `context` tokens of its own stream."""
    read = num_rows * context * model.kv_bytes_per_token
    macs = num_rows * context * model.attention_macs_per_context_token * model.num_layers
    return max(read / rates.read_bytes_per_s, macs / rates.macs_per_s) * rates.context_factor


def _roofline(rates: Rates, size_bytes: int, macs: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Times:
    return np.maximum(size_bytes / rates.read_bytes_per_s, macs / rates.macs_per_s)


def _distance(calibration: Calibration, model: ModelShape, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Times:
    """How many times longer than the calibrated machine's roofline its kernels took, between the calibrated rows.

    Never below 1: a read probe that met a slow minute would make machines faster than they can be.
    """
    name = model.weight_format.name.lower()
    measured = calibration.expert_ms.get(NEAREST_FORMAT.get(name, name))
    if not measured:
        raise InvalidRequest(f"the calibration has no {name}; it has {', '.join(calibration.expert_ms)}")
    points = sorted((int(count), ms / 1000) for count, ms in measured.items())
    counts = np.array([count for count, _ in points])
    width = model.expert_bytes / (2 * model.expert_macs)  # of this format, to bf16's two bytes
    macs_per_row = calibration.expert_bytes // 2
    roof = _roofline(calibration.rates(), round(calibration.expert_bytes * width), macs_per_row * counts)
    factors = np.maximum(1.0, np.array([time_s for _, time_s in points]) / roof)
    return np.interp(np.log(np.maximum(rows, 1)), np.log(counts), factors)


def _parse(data: bytes, name: str) -> Calibration:
    try:
        return msgspec.json.decode(data, type=Calibration)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{name} is no calibration: {error}") from error
