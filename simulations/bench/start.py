"""Where a node's start goes: from the process to the first answer of an expert, with nothing cached and with all of it.

Real processes (`shoal node`) with experts of DeepSeek-V3's size; a client of ours asks over TLS the moment the node
says that it is ready. Beside it, in this process: one expert read, hashed and packed, and one mapped and hashed. Starts
take turns, so that they meet the same neighbours. Run: shoal bench start
"""

import asyncio
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from shoal.experts.cpu_backend import CpuBackend
from shoal.experts.manifest import MANIFEST_FILE, write_manifest
from shoal.experts.manifest_maker import make_manifest
from shoal.experts.packed_cache import PackedCache
from shoal.experts.pieces.disk import FolderDisk
from shoal.experts.store import ModelStore
from shoal.kernels.cpu import CpuKernels
from shoal.node.weights.packing import FOLDER, key_of, load_one
from shoal.protocol.control import GetPeers, PeerRole, Peers
from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.messages import Dispatch, DType, Rounding, WeightFormat
from shoal.protocol.net.control_socket import ask
from shoal.protocol.net.direct import DirectConnector
from shoal.protocol.tensors import dispatch_body
from shoal.simulations.bench.machine import describe_machine, git_commit
from shoal.simulations.rehearsal.layout import PublishedShape
from shoal.simulations.rehearsal.sparse import write_sparse
from shoal.simulations.scratch import scratch_directory

LAYER = LayerId(1)
READY_TIMEOUT_S, STOP_TIMEOUT_S, KEPT_TIMEOUT_S = 600.0, 60.0, 600.0
TIMEOUT_MS = 60_000
NAME = "bench"


@dataclass(frozen=True, slots=True)
class StartSettings:
    """What is started."""

    num_experts: int = 32
    """Of DeepSeek-V3's size, 44 MB each."""
    rounds: int = 5


@dataclass(frozen=True, slots=True)
class Start:
    """One start. Seconds since the process began; `cpu_s`: of it and its children until they ended."""

    ready_s: float
    answer_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Import:
    """What an interpreter took to import something and end."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class StartReport:
    """Everything that was measured, in rounds."""

    settings: StartSettings
    starts: dict[str, list[Start]]
    """One expert; all of them packed anew; all of them mapped."""
    imports: dict[str, list[Import]]
    expert_ms: dict[str, list[float]]
    """One expert in this process, wall time."""

    def as_json(self) -> dict[str, object]:
        """With the machine."""
        return {**describe_machine(), "commit": git_commit(), **asdict(self)}


def bench_start(settings: StartSettings) -> StartReport:
    """Measure everything.

    Raises:
        RuntimeError: the node did not start, with what it said.
    """
    with scratch_directory() as scratch:
        environment, model = bench_environment(scratch), bench_model(scratch / "model", settings.num_experts)
        cache = scratch / "cache" / "shoal" / FOLDER
        one, several = f"{LAYER}:0", f"{LAYER}:0-{settings.num_experts - 1}"
        imports = {
            code: [_import(code) for _ in range(settings.rounds)] for code in ("import torch", "import shoal.node.host")
        }
        starts: dict[str, list[Start]] = {"one expert": [], "packed": [], "mapped": []}
        _start(environment, model, several, Kept(cache, settings.num_experts))
        for _ in range(settings.rounds):
            starts["mapped"].append(_start(environment, model, several))
            starts["one expert"].append(_start(environment, model, one))
            with _away(cache):
                starts["packed"].append(_start(environment, model, several))
        return StartReport(settings, starts, imports, _one_expert(model, scratch, settings.rounds))


def table(report: StartReport) -> str:
    """Medians and ranges, for people."""
    machine = describe_machine()
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}, commit {git_commit()};"
        f" {report.settings.num_experts} experts of 44 MB, median (range) of {report.settings.rounds}",
        _row("start of", "ready s", "first answer s", "processor s"),
    ]
    for name, found in report.starts.items():
        columns = [[each.ready_s for each in found], [each.answer_s for each in found], [each.cpu_s for each in found]]
        lines.append(_row(name, *map(_middle, columns)))
    for name, times in report.imports.items():
        lines.append(_row(name, _middle([each.wall_s for each in times]), "", _middle([each.cpu_s for each in times])))
    return "\n".join([*lines, *(f"one expert, {name}: {_middle(ms)} ms" for name, ms in report.expert_ms.items())])


def _row(name: str, *columns: str) -> str:
    return f"{name:24}" + "".join(f"{column:>22}" for column in columns)


def _middle(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def bench_model(directory: Path, num_experts: int) -> Path:
    """A model with one layer of experts of the published size, and the least of everything else."""
    shape = PublishedShape(
        dense_inter=128, num_layers=2, num_dense_layers=1, num_experts=num_experts, num_groups=1, topk_groups=1,
        top_k=1, num_heads=1, q_lora_rank=128, kv_lora_rank=128, vocab_size=128, stages=(), has_mtp=False,
    )  # fmt: skip
    write_sparse(directory, shape, lambda name: True)
    write_manifest(make_manifest(directory), directory / MANIFEST_FILE)
    return directory


def bench_environment(scratch: Path) -> dict[str, str]:
    """Directories of its own, and a node that works whatever this machine does meanwhile."""
    config = scratch / "config" / "shoal"
    config.mkdir(parents=True)
    own = ("low_priority = false", "on_battery = true", "on_metered = true", "max_temperature_c = 1000.0")
    (config / "shoal.toml").write_text("\n".join(("[node.guest]", *own, "")), encoding="ascii")
    (scratch / "run").mkdir(0o700)
    variables = {"CACHE": "cache", "CONFIG": "config", "STATE": "state"}
    homes = {f"XDG_{name}_HOME": str(scratch / folder) for name, folder in variables.items()}
    return {**os.environ, **homes, "XDG_RUNTIME_DIR": str(scratch / "run"), "HOME": str(scratch)}


def _start(environment: Mapping[str, str], model: Path, experts: str, kept: "Kept | None" = None) -> Start:
    """Start a node, ask it, stop it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun_s = time.perf_counter()
    words = ["--open", "--yes", "--no-lan", "--model", str(model), "--experts", experts, "--name", NAME]
    process = subprocess.Popen(
        [sys.executable, "-m", "shoal.cli", "node", *words], env=dict(environment), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        is_ready = process.stdout is not None and bool(process.stdout.readline())
        ready_s = time.perf_counter() - begun_s
        if not is_ready:
            raise RuntimeError(f"the node did not start: {process.communicate(timeout=STOP_TIMEOUT_S)[1][-500:]}")
        asyncio.run(_ask(Path(environment["XDG_RUNTIME_DIR"]) / "shoal", model))
        answer_s = time.perf_counter() - begun_s
        if kept is not None:
            kept.wait()
    finally:
        process.terminate()
        try:
            process.communicate(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Start(ready_s, answer_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


async def _ask(control: Path, model: Path) -> None:
    """One row through expert 0, over TLS."""
    reply = await ask(control, NAME, GetPeers())
    if not isinstance(reply, Peers):
        raise RuntimeError(f"the node does not say where it is: {reply}")
    me = next(peer for peer in reply.peers if peer.role is PeerRole.SELF)
    connector = DirectConnector(Identity.from_seed(b"bench start".ljust(32)), os.urandom)
    try:
        channel = await connector.connect(PeerId(me.peer), me.addresses, TIMEOUT_MS / 1000)
        with ModelStore.open(model, model) as store:
            root, hidden = store.manifest.root, store.spec.expert.hidden
        message = Dispatch(
            root, LAYER, Rounding.BF16, WeightFormat.FP8_BLOCK, DType.BF16, 1, hidden, (0,), (1,), TIMEOUT_MS
        )
        row = torch.ones((1, hidden), dtype=torch.bfloat16)
        await channel.request(message, [dispatch_body(row, torch.zeros(1, dtype=torch.int64), torch.ones(1))])
    finally:
        await connector.aclose()


@dataclass(frozen=True, slots=True)
class Kept:
    """Waits until a running node has written its experts."""

    folder: Path
    count: int

    def wait(self) -> None:
        """Raises RuntimeError: it has not, in ten minutes."""
        until_s = time.perf_counter() + KEPT_TIMEOUT_S
        while time.perf_counter() < until_s:
            with suppress(FileNotFoundError):
                if len(list((self.folder / "packed").iterdir())) >= self.count:
                    return
            time.sleep(0.2)
        raise RuntimeError("the node did not keep its experts")


class _away:
    """The cache is not there inside the `with`."""

    def __init__(self, cache: Path) -> None:
        self._cache, self._elsewhere = cache, cache.with_name("elsewhere")

    def __enter__(self) -> None:
        self._cache.rename(self._elsewhere)

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._cache, ignore_errors=True)
        self._elsewhere.rename(self._cache)


def _import(code: str) -> Import:
    before, begun_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    wall_s, after = time.perf_counter() - begun_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Import(wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _one_expert(model: Path, scratch: Path, rounds: int) -> dict[str, list[float]]:
    """Milliseconds for one expert: read, hashed and packed, and mapped and hashed."""
    backend, packed_ms, mapped_ms = CpuBackend(CpuKernels(1)), list[float](), list[float]()
    cache = PackedCache(FolderDisk(scratch / "one"), lambda: 10**12)
    with ModelStore.open(model, scratch) as store:
        key, weights = key_of(store, LAYER, ExpertId(0)), store.expert(LAYER, ExpertId(0))
        cache.keep(key, backend.pack(store.spec.expert, weights))
        for _ in range(rounds):
            packed_ms.append(_milliseconds(lambda: load_one(store, backend, None, LAYER, ExpertId(0))))
            mapped_ms.append(_milliseconds(lambda: load_one(store, backend, cache, LAYER, ExpertId(0))))
    return {"packed": packed_ms, "mapped": mapped_ms}


def _milliseconds(work: Callable[[], object]) -> float:
    begun_s = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - begun_s)
