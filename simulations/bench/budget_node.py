"""A holder in a process of its own for the time budget of an exchange: real server, batcher, kernels, channel.

Its experts are slivers of DeepSeek-V3's: rows of 7,168, but few inner columns, so that what is not the kernel can be
seen. It tells its moments and its processor time when it is asked.
"""

import asyncio
import resource
import threading
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.experts.specs import PROJECTIONS, ExpertSpec
from shoal.experts.weight_formats import quantize_expert
from shoal.experts.worker import ComputeWorker
from shoal.node.serving.admission import Admission, AdmissionLimits
from shoal.node.serving.batcher import Batcher
from shoal.node.serving.server import ExpertServer, Held
from shoal.protocol.errors import ConnectFailed
from shoal.protocol.frames import FrameDecoder
from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import WeightFormat
from shoal.protocol.net.lane import LaneStream
from shoal.protocol.net.server_session import ServerSession
from shoal.simulations.bench.marks import Spot, marking
from shoal.simulations.bench.wire import KINDS, run_in_uvloop

MODEL_ROOT = b"budget of an exchange".ljust(32)
WEIGHT_FORMAT = WeightFormat.FP8_BLOCK
SPEC = ExpertSpec(hidden=7168, inter=128)
EXPERTS_OF_A_NODE = 4
LAYER = LayerId(0)
READY_TIMEOUT_S = 120.0
WORKER = "kernel"

SPOTS = (
    Spot(FrameDecoder, "feed", before="node bytes"),
    Spot(ServerSession, "_on_request", before="node frame"),
    Spot(ExpertServer, "_serve", before="node handler"),
    Spot(Batcher, "run", before="node admitted"),
    Spot(Batcher, "_on_worker", before="node kernel", after="node computed"),
    Spot(ExpertServer, "_count", before="node back"),
    Spot(LaneStream, "write", before="node write", after="node written"),
)


@dataclass(frozen=True, slots=True)
class Used:
    """What a process has used so far. Seconds; `waited_s`: it could have run and another did (schedstat)."""

    user_s: float
    system_s: float
    waited_s: float
    num_switches: int
    """Times that it had nothing to do and was woken."""

    def since(self, before: "Used") -> "Used":
        """The difference."""
        return Used(
            self.user_s - before.user_s, self.system_s - before.system_s, self.waited_s - before.waited_s,
            self.num_switches - before.num_switches,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Told:
    """A node's answer. marks: name, seconds. worker_tid: of the thread of its kernels."""

    used: Used
    marks: list[tuple[str, float]]
    worker_tid: int


def used() -> Used:
    """By this process, all threads."""
    of_self = resource.getrusage(resource.RUSAGE_SELF)
    return Used(of_self.ru_utime, of_self.ru_stime, _waited_s(), of_self.ru_nvcsw)


def _waited_s() -> float:
    """Time in run queues of all threads; 0 where the kernel does not say."""
    found = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        try:
            found += int(file.read_text().split()[1])
        except OSError:  # a thread that ended meanwhile
            continue
    return found / 1e9


def node_identity(place: int) -> Identity:
    """The key of the node at a place."""
    return Identity.from_seed(f"budget node {place}".encode().ljust(32))


def experts_of(place: int) -> tuple[ExpertId, ...]:
    """What the node at a place holds."""
    return tuple(ExpertId(place * EXPERTS_OF_A_NODE + i) for i in range(EXPERTS_OF_A_NODE))


class BudgetNode:
    """The driver's side of a node process; leaving the context ends it."""

    def __init__(self, kind: str, place: int) -> None:
        context = get_context("spawn")
        self.place = place
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=_main, args=(child_pipe, kind, place), daemon=True)
        self._child_pipe = child_pipe

    def __enter__(self) -> "BudgetNode":
        self._process.start()
        self._child_pipe.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()  # which ends it
        self._process.join()
        self._process.close()

    def addresses(self) -> tuple[str, ...]:
        """Where it listens. Blocking."""
        if not self._pipe.poll(READY_TIMEOUT_S):
            raise ConnectFailed(f"the node was not ready in {READY_TIMEOUT_S:.0f} s")
        addresses: tuple[str, ...] = self._pipe.recv()
        return addresses

    @property
    def pid(self) -> int:
        """Of the process, and so of the thread of its loop."""
        return self._process.pid or 0

    def ask(self, is_marking: bool) -> Told:
        """What it has used, and its moments since the last question; from now on it tells them or not. Blocking."""
        self._pipe.send(is_marking)
        answer: Told = self._pipe.recv()
        return answer


def _main(pipe: Connection, kind: str, place: int) -> None:
    torch.set_num_threads(1)
    run_in_uvloop(_serve(pipe, kind, place))


async def _serve(pipe: Connection, kind: str, place: int) -> None:
    worker, backend = ComputeWorker(WORKER), choose_backend(KernelChoice.AUTO, 1)
    generator = torch.Generator().manual_seed(place)
    shapes = ((SPEC.inter, SPEC.hidden), (SPEC.inter, SPEC.hidden), (SPEC.hidden, SPEC.inter))
    experts = {}
    for expert in experts_of(place):
        plain = {
            name: torch.randn(size, generator=generator) / 40 for name, size in zip(PROJECTIONS, shapes, strict=True)
        }
        experts[expert] = backend.pack(SPEC, quantize_expert(plain, WEIGHT_FORMAT, "a benchmark"))
    held = Held(MODEL_ROOT, WEIGHT_FORMAT, SPEC, {LAYER: experts})
    server = ExpertServer(held, backend, worker, Admission(AdmissionLimits(), time.monotonic), time.perf_counter)
    async with KINDS[kind].listener(node_identity(place), server.handle) as listener:
        pipe.send(listener.addresses)
        try:
            await _answer(pipe)
        finally:
            await server.aclose()
            await worker.aclose()


async def _answer(pipe: Connection) -> None:
    """Answer questions until the driver is gone."""
    spots: tuple[Spot, ...] = ()
    while True:
        with marking(spots) as marks:
            try:
                is_marking = await asyncio.to_thread(pipe.recv)
            except EOFError:
                return
        workers = [thread.native_id for thread in threading.enumerate() if thread.name == WORKER]
        pipe.send(Told(used(), marks.found, (workers or [None])[0] or 0))
        spots = SPOTS if is_marking else ()
