"""What expert calls cost on a CUDA device: ours against torch bf16 on the same device, in turns.

Two kinds of rows: few tokens for one expert, which memory limits (share of the measured copy bandwidth), and 4096 rows
over 32 experts, which arithmetic limits (share of the measured bf16 matrix rate). Both sides are captured as CUDA
graphs, so that `ms` is the device's time and no launch of Python's; `call_ms` is a whole call of ours as a node makes
it, host work included. Weights rotate over more memory than any cache holds. It has not run on a device yet
(docs/LOG.md); tests run it in Triton's interpreter with the host's clock.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import torch
from torch.nn.functional import grouped_mm, linear, silu

from shoal.experts.cuda_backend import LAYOUTS, CudaBackend, CudaExpert
from shoal.experts.family import ExpertSpec
from shoal.experts.weight_formats import expert_shapes, quantize_expert, stored_bytes
from shoal.kernels.cpu import Format
from shoal.kernels.cuda.grouped_swiglu import DeviceExperts, grouped_swiglu, plan_launch
from shoal.protocol.messages import WeightFormat
from shoal.simulations.bench.machine import describe_machine, git_commit

SPEC = ExpertSpec(hidden=7168, inter=2048)
"""DeepSeek-V3."""

ROTATED_BYTES = 900_000_000
"""Weights that calls rotate over: an H200's L2 has 50 MB."""

CALLS_PER_BLOCK = 20
ROUNDS = 30
PROBE_BYTES = 1 << 30
PROBE_SIZE = 8192
"""Rows and columns of the matrices whose product is the limit of arithmetic."""

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Load:
    """Rows of a call: as many for each expert."""

    num_experts: int
    rows_per_expert: int


MANY = Load(32, 128)
"""4096 rows over 32 experts."""


class Clock(Protocol):
    """How blocks of calls are timed on a device."""

    def prepare(self, calls: Sequence[Call]) -> Callable[[], float]:
        """Something that runs the calls and says how many seconds one took, on average."""


class GraphClock:
    """Blocks as CUDA graphs between two events."""

    def prepare(self, calls: Sequence[Call]) -> Callable[[], float]:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side):
            for call in calls:  # compiles, and fills caches of allocators
                call()
        side.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

        def run() -> float:
            started.record()
            graph.replay()
            ended.record()
            ended.synchronize()
            return float(started.elapsed_time(ended)) / 1000 / len(calls)

        return run


class HostClock:
    """Blocks by the host's clock, everything waited for."""

    def prepare(self, calls: Sequence[Call]) -> Callable[[], float]:
        def run() -> float:
            started = perf_counter()
            for call in calls:
                call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return (perf_counter() - started) / len(calls)

        return run


@dataclass(frozen=True, slots=True)
class Bench:
    """One device, one shape of experts, and how long to measure. The defaults are those of a published table."""

    device: torch.device
    clock: Clock
    spec: ExpertSpec = SPEC
    rotated_bytes: int = ROTATED_BYTES
    calls_per_block: int = CALLS_PER_BLOCK
    rounds: int = ROUNDS


@dataclass(frozen=True, slots=True)
class Limits:
    """What this device could do at best: bytes read and written by a copy, operations of a bf16 product, per second."""

    copy_gb_per_s: float
    matmul_tflop_per_s: float


def bench_cuda_kernels(formats: Sequence[Format], tokens: Sequence[int]) -> dict[str, object]:
    """Measure every format with every number of tokens for one expert, and with 4096 rows over 32 experts.

    Raises:
        InvalidRequest: no CUDA device, or Triton is not installed.
    """
    device = torch.device("cuda")
    CudaBackend(device)  # for its checks
    limits = probe(Bench(device, GraphClock()), PROBE_BYTES, PROBE_SIZE)
    loads = [*(Load(1, count) for count in tokens), MANY]
    return {
        "machine": describe_machine() | {"device": torch.cuda.get_device_name(device)},
        "commit": git_commit(),
        "torch": torch.__version__,
        "shape": {"hidden": SPEC.hidden, "inter": SPEC.inter},
        "copy_gb_per_s": round(limits.copy_gb_per_s, 1),
        "matmul_tflop_per_s": round(limits.matmul_tflop_per_s, 1),
        "rows": measure(Bench(device, GraphClock()), formats, loads, limits),
    }


def probe(bench: Bench, num_bytes: int, size: int) -> Limits:
    """The device's limits, the best of all rounds."""
    source, target = (torch.zeros(num_bytes, dtype=torch.uint8, device=bench.device) for _ in range(2))
    left, right = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    copy_s = min(_samples(bench, [lambda: target.copy_(source)]))
    matmul_s = min(_samples(bench, [lambda: left @ right]))
    return Limits(2 * num_bytes / copy_s / 1e9, 2 * size**3 / matmul_s / 1e12)


def measure(bench: Bench, formats: Sequence[Format], loads: Sequence[Load], limits: Limits) -> list[dict[str, object]]:
    """Rows of the table."""
    most = max(load.num_experts for load in loads)
    peer = _TorchBf16(bench, most)
    rows = []
    for weight_format in formats:
        ours = _Ours(bench, WeightFormat(weight_format), most)
        rows += [{"format": weight_format.name.lower(), **_row(bench, ours, peer, load, limits)} for load in loads]
        del ours  # before the next gigabyte
    return rows


def table(result: dict[str, object]) -> str:
    """The result of `bench_cuda_kernels` for people."""
    rows = result["rows"]
    if not isinstance(rows, list):
        raise TypeError("not a result of bench_cuda_kernels")
    lines = [
        f"{result['machine']}, commit {result['commit']}",
        f"limits: {result['copy_gb_per_s']} GB/s copied (read + written), {result['matmul_tflop_per_s']} TFLOP/s bf16;"
        f" ratio: ours / torch {result['torch']} bf16, device time; call ms: with the host's work",
        f"{'format':10} {'experts':>7} {'rows':>5} {'ms':>8} {'± ms':>7} {'torch ms':>8} {'ratio':>6} {'call ms':>8}"
        f" {'GB/s':>7} {'%':>4} {'TFLOP/s':>8} {'%':>4}",
    ]
    lines += [
        f"{row['format']:10} {row['experts']:7} {row['tokens']:5} {row['ms']:8.4f} {row['spread_ms']:7.4f}"
        f" {row['torch_ms']:8.4f} {row['ratio']:6.2f} {row['call_ms']:8.3f} {row['gb_per_s']:7.0f}"
        f" {100 * row['copy_share']:4.0f} {row['tflop_per_s']:8.2f} {100 * row['matmul_share']:4.0f}"
        for row in rows
    ]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Arguments:
    """Of one call: as many rows for each of its experts, every row for one expert."""

    x: torch.Tensor
    row_idx: torch.Tensor
    offsets: list[int]
    topk_weights: torch.Tensor

    @classmethod
    def of(cls, bench: Bench, load: Load) -> "_Arguments":
        num_rows = load.num_experts * load.rows_per_expert
        x = torch.randn(num_rows, bench.spec.hidden).bfloat16().to(bench.device)
        offsets = list(range(0, num_rows + 1, load.rows_per_expert))
        return cls(x, torch.arange(num_rows), offsets, torch.rand(num_rows).to(bench.device))


class _Ours:
    """Packed experts of one format on the device, enough of them that none is in a cache when its turn comes."""

    def __init__(self, bench: Bench, weight_format: WeightFormat, at_least: int) -> None:
        self._bench, self._format = bench, weight_format
        self.size_bytes = stored_bytes(bench.spec, weight_format)
        weights = {name: _random(shape) for name, shape in expert_shapes(bench.spec).items()}
        backend = CudaBackend(bench.device, is_interpreted=bench.device.type == "cpu")
        stored = quantize_expert(weights, weight_format, "a benchmark")
        count = max(at_least, bench.rotated_bytes // self.size_bytes + 1)
        self._experts = [backend.pack(bench.spec, stored) for _ in range(count)]

    def calls_of(self, arguments: _Arguments, num_experts: int) -> list[Call]:
        """The two launches of a call, planned; one call after another takes the next experts."""
        launches = [
            plan_launch(
                self._group(i, num_experts), arguments.row_idx, arguments.offsets, len(arguments.x), is_rounded=True
            )
            for i in range(self._bench.calls_per_block)
        ]
        return [lambda launch=launch: launch.run(arguments.x, arguments.topk_weights) for launch in launches]  # type: ignore[misc]

    def whole_calls_of(self, arguments: _Arguments, num_experts: int) -> list[Call]:
        """The same with the host's part, as a back end makes them."""
        groups = [self._group(i, num_experts) for i in range(self._bench.calls_per_block)]
        of = arguments
        return [
            lambda group=group: grouped_swiglu(group, of.x, of.row_idx, of.offsets, of.topk_weights, is_rounded=True)  # type: ignore[misc]
            for group in groups
        ]

    def _group(self, number: int, num_experts: int) -> DeviceExperts:
        chosen: list[CudaExpert] = [
            self._experts[(number * num_experts + i) % len(self._experts)] for i in range(num_experts)
        ]
        addresses = torch.tensor([expert.addresses for expert in chosen], dtype=torch.int64).to(self._bench.device)
        return DeviceExperts(addresses, self._bench.spec.hidden, self._bench.spec.inter, LAYOUTS[self._format])


class _TorchBf16:
    """The same experts in torch: three products for one expert, three grouped products (SM80 and later) for several."""

    def __init__(self, bench: Bench, at_least: int) -> None:
        self._bench = bench
        count = max(at_least, bench.rotated_bytes // stored_bytes(bench.spec, WeightFormat.BF16) + 1)
        self._stacks = [
            _random(shape).to(bench.device, torch.bfloat16).repeat(count, 1, 1)
            for shape in expert_shapes(bench.spec).values()
        ]

    def calls_of(self, arguments: _Arguments, num_experts: int) -> list[Call]:
        """One call after another takes the next experts; several experts always are the first ones."""
        x, weights = arguments.x, arguments.topk_weights[:, None]
        ends = torch.tensor(arguments.offsets[1:], dtype=torch.int32).to(self._bench.device)

        def one(i: int) -> torch.Tensor:
            gate, up, down = (stack[i % len(stack)] for stack in self._stacks)
            y: torch.Tensor = linear(silu(linear(x, gate)) * linear(x, up), down).float() * weights
            return y

        def several() -> torch.Tensor:
            gate, up, down = (stack[:num_experts].mT for stack in self._stacks)
            products = silu(grouped_mm(x, gate, offs=ends)) * grouped_mm(x, up, offs=ends)
            y: torch.Tensor = grouped_mm(products, down, offs=ends).float() * weights
            return y

        if num_experts > 1:
            return [several] * self._bench.calls_per_block
        return [lambda i=i: one(i) for i in range(self._bench.calls_per_block)]  # type: ignore[misc]


def _random(shape: tuple[int, int]) -> torch.Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))
    return weight / math.sqrt(shape[1])


def _row(bench: Bench, ours: _Ours, peer: _TorchBf16, load: Load, limits: Limits) -> dict[str, object]:
    arguments = _Arguments.of(bench, load)
    with torch.no_grad():
        run_ours = bench.clock.prepare(ours.calls_of(arguments, load.num_experts))
        run_torch = bench.clock.prepare(peer.calls_of(arguments, load.num_experts))
        pairs = [(run_ours(), run_torch()) for _ in range(bench.rounds)]
        run_whole = HostClock().prepare(ours.whole_calls_of(arguments, load.num_experts))
        call_s = statistics.median(run_whole() for _ in range(max(2, bench.rounds // 5)))
    times_s, torch_s = [pair[0] for pair in pairs], statistics.median(pair[1] for pair in pairs)
    median_s, quarters = statistics.median(times_s), statistics.quantiles(times_s, n=4)
    num_rows = len(arguments.x)
    gb_per_s = load.num_experts * ours.size_bytes / median_s / 1e9
    tflop_per_s = 2 * bench.spec.macs_per_row * num_rows / median_s / 1e12
    return {
        "experts": load.num_experts,
        "tokens": num_rows,
        "ms": round(1000 * median_s, 5),
        "spread_ms": round(500 * (quarters[2] - quarters[0]), 5),
        "torch_ms": round(1000 * torch_s, 5),
        "ratio": round(median_s / torch_s, 3),
        "call_ms": round(1000 * call_s, 4),
        "gb_per_s": round(gb_per_s, 1),
        "copy_share": round(gb_per_s / limits.copy_gb_per_s, 3),
        "tflop_per_s": round(tflop_per_s, 3),
        "matmul_share": round(tflop_per_s / limits.matmul_tflop_per_s, 3),
    }


def _samples(bench: Bench, calls: Sequence[Call]) -> list[float]:
    run = bench.clock.prepare(calls)
    return [run() for _ in range(bench.rounds)]
