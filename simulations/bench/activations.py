"""What each format of activations costs: `shoal bench activations`.

The demonstration model reads held-out stories, each token after the true ones before it, while hidden states and
partial sums go through the format at every layer: bits per byte, greedy tokens that become others, what a layer's
output loses on equal inputs, bytes of a token. Then the codec's own time on rows of DeepSeek-V3's size, one thread.
"""

import asyncio
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch

from shoal.client.engine.generate import Engine
from shoal.client.engine.logprobs import TokenScore
from shoal.client.routing.activations import WireFormat
from shoal.protocol.dtypes import row_bytes
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.messages import DType
from shoal.protocol.tensors import decode_rows, encode_rows, tensor_bytes
from shoal.simulations.bench.lossy_experts import LossyExperts
from shoal.simulations.bench.machine import describe_machine, git_commit
from shoal.simulations.demo_model.held_out import held_out_stories
from shoal.simulations.virtual.model import SimulatedModel
from shoal.simulations.virtual.soak import demo_model_in_memory

FORMATS = {
    "exact": WireFormat(DType.F32, DType.F32),
    "bf16": WireFormat(DType.BF16, DType.BF16),
    "fp8": WireFormat(DType.FP8, DType.FP8),
    "int8": WireFormat(DType.INT8, DType.INT8),
}
V3_HIDDEN = 7168
TIMED_ROWS = (1, 8, 256)
TIMING_S = 0.2
"""For the median of each figure."""


@dataclass(frozen=True, slots=True)
class ActivationsSettings:
    """What is measured."""

    stories: int = 8
    tokens: int = 384
    """Of each story at most."""
    holders: int = 4
    """Of a layer."""


@dataclass(frozen=True, slots=True)
class Row:
    """One format. Errors are relative L2."""

    format: str
    bits_per_byte: float
    changed_tokens: float
    """Share of places in which the likeliest token is not the exact one's."""
    layer_errors: tuple[float, ...]
    bytes_up: float
    """Of a token of the demonstration model, all layers: there."""
    bytes_down: float
    v3_bytes_up: int
    """Of one row of DeepSeek-V3's."""
    v3_bytes_down: int
    encode_us: dict[str, float]
    """A row, by rows that are encoded together; of what is sent there."""
    decode_us: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Reading:
    """How the model found some stories."""

    nats: float
    num_bytes: int
    greedy: list[int]


def bench_activations(settings: ActivationsSettings, cache_dir: Path | None = None) -> dict[str, object]:
    """A row for every format. One thread.

    Raises:
        InvalidRequest: nothing to measure. ShoalError: whatever the model raises.
    """
    if min(settings.stories, settings.holders) < 1 or settings.tokens < 2:
        raise InvalidRequest("expected a story or more, a holder or more, two tokens or more")
    torch.set_num_threads(1)
    rows: list[Row] = []
    with demo_model_in_memory(cache_dir) as model:
        stories = _stories(model, settings)
        exact: _Reading | None = None
        for name, formats in FORMATS.items():
            experts = LossyExperts(model, formats, settings.holders)
            reading = asyncio.run(_read(model, experts, stories))
            exact = exact or reading
            rows.append(_row(name, formats, experts, reading, exact))
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "stories": len(stories),
        "num_bytes": reading.num_bytes,
        "num_tokens": len(reading.greedy),
        "holders": settings.holders,
        "rows": [asdict(row) for row in rows],
    }


def _stories(model: SimulatedModel, settings: ActivationsSettings) -> list[list[int]]:
    tokenizer = model.opened.tokenizer
    if tokenizer is None:
        raise InvalidRequest("the model has no tokenizer")
    return [tokenizer.encode(story.plain)[: settings.tokens] for story in held_out_stories()[: settings.stories]]


async def _read(model: SimulatedModel, experts: LossyExperts, stories: Sequence[Sequence[int]]) -> _Reading:
    engine = Engine(model.opened.trunk, experts, model.opened.tokenizer)
    scores: list[TokenScore] = []
    try:
        for story in stories:
            scores += (await engine.score(list(story), top_logprobs=1))[1:]
    finally:
        await engine.aclose()
    tokenizer = model.opened.tokenizer
    texts = [tokenizer.decode(list(story[1:])) for story in stories] if tokenizer else []
    nats = -sum(score.logprob or 0.0 for score in scores)
    return _Reading(nats, sum(len(text.encode()) for text in texts), [score.top_logprobs[0][0] for score in scores])


def _row(name: str, formats: WireFormat, experts: LossyExperts, reading: _Reading, exact: _Reading) -> Row:
    changed = sum(a != b for a, b in zip(reading.greedy, exact.greedy, strict=True))
    bytes_up, bytes_down = experts.bytes_per_token()
    return Row(
        format=name,
        bits_per_byte=reading.nats / math.log(2) / reading.num_bytes,
        changed_tokens=changed / len(exact.greedy),
        layer_errors=tuple(loss.relative for loss in experts.losses.values()),
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        v3_bytes_up=row_bytes(formats.up, V3_HIDDEN),
        v3_bytes_down=row_bytes(formats.down, V3_HIDDEN),
        encode_us={str(count): _encode_us(formats.up, count) for count in TIMED_ROWS},
        decode_us={str(count): _decode_us(formats.up, count) for count in TIMED_ROWS},
    )


def _encode_us(dtype: DType, num_rows: int) -> float:
    x = torch.randn(num_rows, V3_HIDDEN, generator=torch.Generator().manual_seed(0))
    return _median_us(lambda: bytes(tensor_bytes(encode_rows(x, dtype)))) / num_rows


def _decode_us(dtype: DType, num_rows: int) -> float:
    x = torch.randn(num_rows, V3_HIDDEN, generator=torch.Generator().manual_seed(0))
    body = bytes(tensor_bytes(encode_rows(x, dtype)))
    return _median_us(lambda: decode_rows(body, dtype, num_rows, V3_HIDDEN)) / num_rows


def _median_us(call: Callable[[], object]) -> float:
    times: list[float] = []
    until = perf_counter() + TIMING_S
    while len(times) < 5 or perf_counter() < until:
        started = perf_counter()
        call()
        times.append(perf_counter() - started)
    return statistics.median(times) * 1e6


def table(result: Mapping[str, object]) -> str:
    """The result as Markdown."""
    rows = cast(list[dict[str, Any]], result["rows"])
    exact = rows[0]
    lines = [
        f"{result['stories']} held-out stories, {result['num_tokens']} tokens, {result['num_bytes']} bytes,"
        f" {result['holders']} holders of every layer, commit {result['commit']}, {result['machine']}",
        "",
        "| format | bits per byte | changed greedy tokens | error of a layer (all layers) | bytes of a token up, down"
        " | DeepSeek-V3: bytes of a row up + down | encode µs a row: 1, 8, 256 | decode |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        errors = ", ".join(f"{100 * error:.2f}" for error in row["layer_errors"])
        encode, decode = (", ".join(f"{us:.1f}" for us in row[name].values()) for name in ("encode_us", "decode_us"))
        lines.append(
            f"| {row['format']} | {row['bits_per_byte']:.4f} ({row['bits_per_byte'] - exact['bits_per_byte']:+.4f})"
            f" | {100 * row['changed_tokens']:.2f} % | {errors} % | {row['bytes_up']:.0f}, {row['bytes_down']:.0f}"
            f" | {row['v3_bytes_up']} + {row['v3_bytes_down']} | {encode} | {decode} |"
        )
    return "\n".join(lines)
