"""A node in a process of its own for benchmarks of load: real server, admission, batcher, kernels, TLS; random experts.

What `node/daemon.py` composes, without model, directory and libp2p.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch
import uvloop

from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.experts.specs import PROJECTIONS, ExpertSpec
from shoal.experts.weight_formats import quantize_expert
from shoal.experts.worker import ComputeWorker
from shoal.node.serving.admission import Admission, AdmissionLimits
from shoal.node.serving.server import ExpertServer, Held
from shoal.protocol.errors import ConnectFailed
from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import Dispatch, DType, Rounding, WeightFormat
from shoal.protocol.net.direct import listen_direct
from shoal.protocol.tensors import dispatch_body
from shoal.simulations.bench.machine import peak_memory_since

SERVER = Identity.from_seed(b"loaded node".ljust(32))
MODEL_ROOT = b"loaded node's model".ljust(32)

READY_TIMEOUT_S = 120.0
"""A child imports torch (2 s) and packs its experts; a busy machine takes long."""

MAX_QUEUE_S = 1.0
"""A quarter of a node's default: queues fill within the seconds that a round has."""


@dataclass(frozen=True, slots=True)
class NodeShape:
    """Experts of one layer, fp8. Default: 200 MB, 12 MB each: a call takes milliseconds, as it does in life, and the
    load generator needs less of the machine than the node."""

    hidden: int = 1024
    inter: int = 4096
    num_experts: int = 16


def request_of(shape: NodeShape, num_tokens: int, experts: range, deadline_ms: int) -> tuple[Dispatch, bytes]:
    """A request whose rows all go to all of `experts`."""
    num_experts = len(experts)
    message = Dispatch(
        MODEL_ROOT, 0, Rounding.BF16, WeightFormat.FP8_BLOCK, DType.BF16, num_tokens, shape.hidden, tuple(experts),
        (num_tokens,) * num_experts, deadline_ms,
    )  # fmt: skip
    x = torch.randn(num_tokens, shape.hidden, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    row_idx = torch.arange(num_tokens).repeat(num_experts)
    return message, dispatch_body(x, row_idx, torch.ones(num_tokens * num_experts) / num_experts)


class LoadedNode:
    """The driver's side."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        if not pipe.poll(READY_TIMEOUT_S):
            raise ConnectFailed(f"the node was not ready in {READY_TIMEOUT_S} s")
        self.address = str(pipe.recv())

    async def memory(self) -> tuple[int, int]:
        """Bytes that the node has resident now, and the most since the last call."""
        return await asyncio.to_thread(self._ask)

    def _ask(self) -> tuple[int, int]:
        self._pipe.send("memory")
        now, most = self._pipe.recv()
        return int(now), int(most)


@contextmanager
def loaded_node(shape: NodeShape) -> Iterator[LoadedNode]:
    """A node that runs inside the `with`."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(theirs, shape), daemon=True)
    process.start()
    theirs.close()
    try:
        yield LoadedNode(ours)
    finally:
        ours.close()  # which ends it
        process.join()
        process.close()


def _main(pipe: Connection, shape: NodeShape) -> None:
    torch.set_num_threads(1)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(pipe, shape))


async def _serve(pipe: Connection, shape: NodeShape) -> None:
    worker = ComputeWorker("kernel")
    backend = choose_backend(KernelChoice.AUTO, 1)
    spec = ExpertSpec(shape.hidden, shape.inter)
    generator = torch.Generator().manual_seed(0)
    shapes = ((shape.inter, shape.hidden), (shape.inter, shape.hidden), (shape.hidden, shape.inter))
    experts = {}
    for expert in map(ExpertId, range(shape.num_experts)):
        plain = {
            name: torch.randn(size, generator=generator) / 40 for name, size in zip(PROJECTIONS, shapes, strict=True)
        }
        experts[expert] = backend.pack(spec, quantize_expert(plain, WeightFormat.FP8_BLOCK, "a benchmark"))
    held = Held(MODEL_ROOT, WeightFormat.FP8_BLOCK, spec, {LayerId(0): experts})
    admission = Admission(AdmissionLimits(MAX_QUEUE_S), time.monotonic)
    server = ExpertServer(held, backend, worker, admission, time.perf_counter)
    listener = await listen_direct(SERVER, "127.0.0.1", 0, server.handle, os.urandom)
    pipe.send(listener.addresses[0])
    try:
        while await _answered(pipe):
            pass
    finally:
        await listener.aclose()
        await server.aclose()
        await worker.aclose()


async def _answered(pipe: Connection) -> bool:
    """Wait for a question of the driver and answer it; False when he has gone."""
    with peak_memory_since() as peak_bytes:
        try:
            await asyncio.to_thread(pipe.recv)
        except EOFError:
            return False
        most = peak_bytes()
    with peak_memory_since() as now_bytes:
        pipe.send((now_bytes(), most))
    return True
