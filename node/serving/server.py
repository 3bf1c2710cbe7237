"""One request's way through a node: check it against what we hold, admit it, compute it alone or in company, answer.

Between the channel (which has authenticated the peer and checked the frame) and the kernel. Knows no sockets; the
same `ExpertServer.handle` serves every kind of channel.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import torch

from shoal.experts.backend import ExpertBackend, PackedExpert
from shoal.experts.family import ExpertSpec
from shoal.experts.worker import Worker
from shoal.node.log_events import RequestRefused, RequestServed, log_event
from shoal.node.metrics import NodeMetrics
from shoal.node.serving.admission import Admission, Demand
from shoal.node.serving.batch_rows import Call
from shoal.node.serving.batcher import Batcher, Computed, Job
from shoal.node.serving.cold import ColdExperts, compute
from shoal.protocol.dtypes import EXACT
from shoal.protocol.errors import DeadlineExceeded, Draining, Malformed, NotHeld, PeerFailed, ShoalError, WrongModel
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import Dispatch, DType, Partial, Rounding, WeightFormat
from shoal.protocol.net.channel import Reply, Request
from shoal.protocol.tensors import encode_rows, is_finite, read_dispatch_body, tensor_bytes

DTYPES_OF_ROUNDING = {Rounding.FP32: frozenset(DType), Rounding.BF16: frozenset(DType) - {DType.F32}}


@dataclass(frozen=True, slots=True)
class Held:
    """What this node serves: packed experts of one model in one format."""

    model_root: bytes
    weight_format: WeightFormat
    spec: ExpertSpec
    experts: dict[LayerId, dict[ExpertId, PackedExpert]]
    """Changes while we serve: `keeper.py`."""


class ExpertServer:
    """Serves DISPATCH requests on held experts."""

    def __init__(
        self,
        held: Held,
        backend: ExpertBackend,
        worker: Worker,
        admission: Admission,
        clock: Callable[[], float],
        cold: ColdExperts | None = None,
        reader: Worker | None = None,
    ) -> None:
        """clock: seconds, for durations; the loop's own has milliseconds only under uvloop. cold: what is served from
        disk; None: only what is held is served. reader: where that is read; None: where kernels run."""
        self._held = held
        self._cold = cold
        self._reader = reader or worker
        self._backend = backend
        self._batcher = Batcher(worker, self._compute, is_joining=backend.is_row_exact)
        self._admission = admission
        self._clock = clock
        self._is_refusing_queued = False
        self.metrics = NodeMetrics()

    def refuse_queued(self, is_refusing: bool) -> None:
        """Whether requests that were let in and still wait for the kernel are refused."""
        self._is_refusing_queued = is_refusing
        if is_refusing:
            self._batcher.refuse_waiting()

    async def aclose(self) -> None:
        """Refuse what waits for the kernel, and end; call it when no channel brings requests any more."""
        await self._batcher.aclose()

    async def handle(self, request: Request) -> Reply:
        """Compute the weighted partial sum that a request asks for.

        Raises:
            WrongModel, NotHeld, Malformed, NonFinite: the request does not fit this node.
            Busy, Draining: no room. PeerFailed: our own result is not finite.

        Cancellation: a kernel call that has started runs to its end; its result is dropped.
        """
        try:
            return await self._serve(request)
        except ShoalError as error:
            self.metrics.requests_refused += 1
            log_event(RequestRefused(request.peer, request.message.layer, type(error).__name__))
            raise

    async def _serve(self, request: Request) -> Reply:
        message = request.message
        self._check(message)
        with self._admission.admit(self._demand(request)):
            arrived = self._clock()
            rows = read_dispatch_body(message, request.body)
            call = Call(message.layer, message.rounding, message.experts, rows)
            read_s = await self._read(request)
            computed = await self._batcher.run(Job(request.peer, call, request.deadline))
            elapsed_s = self._clock() - arrived
        self._count(request, computed)
        busy_s = read_s + computed.compute_s
        if not is_finite(computed.result):
            raise PeerFailed("the result of a kernel is not finite")
        reply = Partial(
            request.request_hash, message.num_tokens, message.hidden,
            _microseconds(max(0.0, elapsed_s - busy_s)), _microseconds(busy_s),
            message.reply_dtype,
        )  # fmt: skip
        return Reply(reply, tensor_bytes(encode_rows(computed.result, DType(message.reply_dtype or DType.F32))))

    async def _read(self, request: Request) -> float:
        """Bring what is on disk into memory; the seconds that it took.

        Raises:
            PeerFailed: it can not be read. DeadlineExceeded: it took too long. Busy: too many wait for the disk.
        """
        layer, experts = LayerId(request.message.layer), self._cold_of(request.message)
        if self._cold is None or not experts:
            return 0.0
        read_s = await self._reader.run(self._timed_read, self._cold, layer, experts)
        if asyncio.get_running_loop().time() >= request.deadline:
            raise DeadlineExceeded("the deadline passed while its experts were read from disk")
        return read_s

    def _timed_read(self, cold: ColdExperts, layer: LayerId, experts: list[ExpertId]) -> float:
        """On the reader."""
        started = self._clock()
        cold.read(layer, experts)
        return self._clock() - started

    def _cold_of(self, message: Dispatch) -> list[ExpertId]:
        """What of a request is on disk only."""
        resident = self._held.experts.get(LayerId(message.layer), {})
        return [ExpertId(expert) for expert in message.experts if expert not in resident]

    def _demand(self, request: Request) -> Demand:
        message = request.message
        decoded_bytes = 0 if message.dtype in EXACT else 4 * message.num_tokens * message.hidden
        return Demand(
            request.peer,
            self._macs(message) + self._reading(message),
            max(len(request.body), decoded_bytes),
            message.reply_size(),
            request.deadline - asyncio.get_running_loop().time(),
        )

    def _macs(self, message: Dispatch) -> int:
        return message.num_pairs * self._held.spec.macs_per_row

    def _reading(self, message: Dispatch) -> int:
        """What reading takes, as multiply-accumulates at our speed: admission counts in those."""
        if self._cold is None:
            return 0
        layer, latest = LayerId(message.layer), self._cold.latest
        num_reads = sum((layer, expert) not in latest for expert in self._cold_of(message))
        return int(num_reads * latest.read_s * self._admission.macs_per_s)

    def _check(self, message: Dispatch) -> None:
        """Whether we hold what a request asks for."""
        held = self._held
        if message.model_root != held.model_root or message.weight_format != held.weight_format:
            raise WrongModel("another model or another weight format")
        if message.hidden != held.spec.hidden or message.dtype not in DTYPES_OF_ROUNDING[Rounding(message.rounding)]:
            raise Malformed("hidden size or dtype does not fit the model and the rounding")
        layer = LayerId(message.layer)
        resident, cold = held.experts.get(layer, {}), self._cold
        missing = [
            expert
            for expert in map(ExpertId, message.experts)
            if expert not in resident and not (cold and cold.has(layer, expert))
        ]
        if missing:
            raise NotHeld(f"expert {missing[0]} of layer {message.layer} is not held here")

    def _compute(self, call: Call) -> tuple[torch.Tensor, float]:
        """On the worker: the sums, and the seconds they took."""
        if self._is_refusing_queued:
            raise Draining("this node pauses")
        layer, rows = self._held.experts.get(LayerId(call.layer), {}), call.rows
        if self._cold is not None and any(expert not in layer for expert in call.experts):
            started = self._clock()
            result = compute(self._backend, layer, self._cold, call)
            return result, self._clock() - started
        try:
            experts = [layer[ExpertId(expert)] for expert in call.experts]
        except KeyError as error:  # it waited while the keeper let go of it
            raise NotHeld(f"expert {error} of layer {call.layer} is not held here any more") from error
        started = self._clock()
        run = self._backend.run
        result = run(experts, rows.x, rows.row_idx, rows.offsets, rows.topk_weights, Rounding(call.rounding))
        return result, self._clock() - started

    def _count(self, request: Request, computed: Computed) -> None:
        message, counts, compute_s = request.message, self._batcher.counts, computed.compute_s
        self._admission.observe(self._macs(message), compute_s)
        log_event(
            RequestServed(request.peer, message.layer, len(message.experts), message.num_tokens, compute_s * 1000)
        )
        self.metrics.requests_served += 1
        self.metrics.rows_computed += message.num_pairs
        self.metrics.compute_s += compute_s
        self.metrics.kernel_calls = counts.num_calls
        self.metrics.requests_joined = counts.num_joined
        self.metrics.requests_expired = counts.num_expired


def _microseconds(seconds: float) -> int:
    return min(int(seconds * 1e6), 2**32 - 1)
