"""Ours, torch's bf16 and the peers, in turns: blocks of calls, every member in its own process, one after another.

Every member gets the same weights (gaussian, bf16 numbers) and rows, packs copies of its expert beyond any cache, and
stands still while others run. Ratios are to torch's bf16 in neighbouring blocks (`turns.py`).
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from shoal.experts.specs import ExpertSpec
from shoal.protocol.messages import WeightFormat
from shoal.simulations.bench.kernel_errors import distance
from shoal.simulations.bench.machine import describe_machine, git_commit, num_usable_cores
from shoal.simulations.bench.peers.environments import Environment, NotAvailable, environment, importable
from shoal.simulations.bench.peers.members import BASELINE, GGML, HERE, KT, LICENCES, PEERS, MemberSpec, ours
from shoal.simulations.bench.peers.process import MemberProcess
from shoal.simulations.bench.peers.worker import HIDDEN, INTER, SHAPES, rows
from shoal.simulations.bench.quantizers import Expert, gaussian_expert, output
from shoal.simulations.bench.turns import CALLS_PER_BLOCK, Blocks, all_calls, middle, order, paired_ratio

SPEC = ExpertSpec(HIDDEN, INTER)
DEFAULT_TOKENS = (1, 8, 64, 512)

ERROR_TOKENS = (1, 8, 64)
"""Calls whose output is compared with fp64; 512 rows would cost more than they tell."""

TIME_PER_MEMBER_S = 1.5
MIN_ROUNDS, MAX_ROUNDS = 5, 30

Row = dict[str, object]


@dataclass(slots=True)
class Side:
    """A member that takes part in one table, and what it has shown so far."""

    process: MemberProcess
    held: Expert | None
    """What its weights mean, where it says so."""
    error: float | None = None
    """Relative L2 to fp64 on `held`, the largest of `ERROR_TOKENS`."""
    whole_error: float = 0.0
    """The same to fp64 on the weights that all were given: its quantizer's error is in it."""
    is_alive: bool = True

    @property
    def name(self) -> str:
        return self.process.spec.name


class Comparison:
    """The members' processes and files; leave the context to end them."""

    def __init__(self, environments: Path, threads: int) -> None:
        self._stack = ExitStack()
        self._threads = threads
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        (self._folder / "modules").mkdir()
        modules = importable(self._folder / "modules")
        self._environments = {name: _environment(name, environments, modules) for name in (HERE, GGML, KT)}
        self.given = {name: weight.bfloat16().float() for name, weight in gaussian_expert(SPEC).items()}
        self._exact: dict[int, Tensor] = {}
        """f64[T, H] on `given`, by T."""
        for name, weight in self.given.items():
            weight.numpy().tofile(self._folder / f"{name}.f32")

    def __enter__(self) -> "Comparison":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, specs: Iterable[MemberSpec], stack: ExitStack) -> tuple[list[Side], list[Row]]:
        """Start members, all at once; they end with `stack`. The second result: who is not available, and why."""
        started, sides, missing = [], list[Side](), list[Row]()
        for spec in specs:
            place = self._environments[spec.environment]
            if isinstance(place, Environment):
                started.append(stack.enter_context(MemberProcess(spec, place, self._folder, self._threads)))
            else:
                missing.append(_missing(spec.name, place))
        for process in started:
            try:
                process.wait_until_ready()
                sides.append(Side(process, self._held(process)))
            except NotAvailable as reason:
                missing.append(_missing(process.spec.name, reason))
        return sides, missing

    def prepare(self, side: Side, num_tokens: int) -> None:
        """Give a member its rows, and compare what it answers with fp64.

        Raises:
            NotAvailable: it did not answer.
        """
        name = f"{side.process.prefix}.y.f32"
        side.process.ask({"tokens": num_tokens, "output": name})
        if num_tokens not in ERROR_TOKENS:
            return
        y = torch.from_numpy(np.fromfile(self._folder / name, dtype=np.float32)).view(num_tokens, HIDDEN)
        x = torch.from_numpy(rows(num_tokens)).double()
        if num_tokens not in self._exact:
            self._exact[num_tokens] = output(self.given, x)
        side.whole_error = max(side.whole_error, distance(y, self._exact[num_tokens]))
        if side.held is not None:
            side.error = max(side.error or 0.0, distance(y, output(side.held, x)))

    def _held(self, process: MemberProcess) -> Expert | None:
        if not process.ask({"held": process.prefix})["names"]:
            return None
        held = {}
        for name, shape in SHAPES.items():
            file = self._folder / f"{process.prefix}.{name}.f32"
            held[name] = torch.from_numpy(np.fromfile(file, dtype=np.float32)).view(shape)
            file.unlink()
        return held


def bench_peers(
    environments: Path,
    formats: Sequence[WeightFormat] = tuple(PEERS),
    tokens: Sequence[int] = DEFAULT_TOKENS,
    threads: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, object]:
    """Measure; the result is one JSON object. `threads` 0: one per core. `report` gets lines while it takes time.

    Raises:
        NotAvailable: torch's bf16, which all are compared with, or our kernels do not run.
    """
    threads = threads or num_usable_cores()
    torch.set_num_threads(1)  # this process only checks answers; its threads must not spin beside the members
    result: list[Row] = []
    report("environments")
    with Comparison(environments, threads) as comparison, ExitStack() as lasting:
        (baseline, *_), _ = _needed(comparison.start([BASELINE], lasting))
        for weight_format in formats:
            with ExitStack() as stack:
                sides, missing = comparison.start((ours(weight_format), *PEERS[weight_format]), stack)
                found = _compare(comparison, [*sides, baseline], tokens, missing)
            fresh = [{"format": weight_format.name.lower()} | row for row in (*found, *missing)]
            for row in fresh:
                report(_line(row))
            result += fresh
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "threads": threads,
        "shape": {"hidden": HIDDEN, "inter": INTER},
        "baseline": BASELINE.name,
        "licences": LICENCES,
        "rows": result,
    }


def table(result: dict[str, object]) -> str:
    """The result of `bench_peers` for people."""
    listed = result["rows"]
    if not isinstance(listed, list):
        raise TypeError("not a result of bench_peers")
    licences = ", ".join(f"{name} {licence}" for name, licence in LICENCES.items())
    return "\n".join(
        (
            f"{result['machine']}, commit {result['commit']}, {result['threads']} threads; licences: {licences}",
            f"ratio: to {BASELINE.name} in neighbouring blocks; error: relative L2 to fp64 on the numbers that a"
            " member's weights hold (-: it does not say); whole: on the bf16 weights that all were given",
            f"{'format':10} {'member':27} {'tokens':>6} {'ms':>9} {'± ms':>8} {'best':>9} {'ratio':>7} {'±':>6}"
            f" {'error':>8} {'whole':>8}",
            *(_line(row) for row in listed),
            *sorted({f"{row['member']}: {row['about']}" for row in listed if "about" in row}),
        )
    )


def _compare(comparison: Comparison, sides: list[Side], tokens: Sequence[int], missing: list[Row]) -> list[Row]:
    """Rows of one format, the baseline (the last side) among them; who fails on the way is added to `missing`."""
    result: list[Row] = []
    for num_tokens in tokens:
        blocks: dict[str, Blocks] = {side.name: [] for side in sides}
        for side in sides:
            _try(side, missing, partial(comparison.prepare, side, num_tokens))
        for number in _rounds(len(sides)):
            for index in order(len(sides), number):
                side = sides[index]
                _try(side, missing, partial(_block, side, number, blocks[side.name]))
        sides = [side for side in sides if side.is_alive]
        result += [_row(side, num_tokens, blocks[side.name], blocks[BASELINE.name]) for side in sides]
    return result


def _rounds(num_sides: int) -> Iterator[int]:
    started = perf_counter()
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and perf_counter() - started > TIME_PER_MEMBER_S * num_sides:
            return
        yield number


def _try(side: Side, missing: list[Row], action: Callable[[], None]) -> None:
    if not side.is_alive:
        return
    try:
        action()
    except NotAvailable as reason:
        if side.name == BASELINE.name:
            raise
        side.is_alive = False
        missing.append(_missing(side.name, reason))


def _block(side: Side, number: int, into: Blocks) -> None:
    answer = side.process.ask({"first": number * CALLS_PER_BLOCK, "calls": CALLS_PER_BLOCK})["seconds"]
    if not isinstance(answer, list):
        raise TypeError(f"{side.name} answered {answer}")
    into.append(answer)


def _row(side: Side, num_tokens: int, blocks: Blocks, baseline: Blocks) -> Row:
    time_s, ratio = middle(all_calls(blocks)), paired_ratio(blocks, baseline)
    return {
        "member": side.name,
        "about": side.process.about,
        "tokens": num_tokens,
        "ms": round(1000 * time_s.median, 3),
        "spread_ms": round(1000 * time_s.spread, 3),
        "best_ms": round(1000 * min(all_calls(blocks)), 3),
        "ratio": round(ratio.median, 3),
        "ratio_spread": round(ratio.spread, 3),
        "error": None if side.error is None else float(f"{side.error:.3g}"),
        "whole_error": float(f"{side.whole_error:.3g}"),
    }


def _line(row: Row) -> str:
    begin = f"{row['format']:10} {row['member']:27}"
    if "not_available" in row:
        return f"{begin} not available: {row['not_available']}"
    error = "-" if row["error"] is None else row["error"]
    return (
        f"{begin} {row['tokens']:6} {row['ms']:9.3f} {row['spread_ms']:8.3f} {row['best_ms']:9.3f} {row['ratio']:7.2f}"
        f" {row['ratio_spread']:6.2f} {error:>8} {row['whole_error']:>8}"
    )


def _environment(name: str, folder: Path, modules: Path) -> Environment | NotAvailable:
    try:
        return environment(name, folder, modules)
    except NotAvailable as reason:
        return reason


def _needed(started: tuple[list[Side], list[Row]]) -> tuple[list[Side], list[Row]]:
    if started[1]:
        raise NotAvailable(str(started[1][0]["not_available"]))
    return started


def _missing(name: str, reason: NotAvailable) -> Row:
    return {"member": name, "not_available": str(reason)}
