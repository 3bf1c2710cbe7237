"""One request's way through a node: check it against what we hold, admit it, compute, answer.

Between the channel (which has authenticated the peer and checked the frame) and the kernel. Knows no sockets; the
same `ExpertServer.handle` serves every kind of channel.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from shoal.experts.backend import ExpertBackend, PackedExpert
from shoal.experts.family import ExpertSpec
from shoal.experts.worker import Worker
from shoal.node.admission import Admission
from shoal.node.log_events import RequestRefused, RequestServed, log_event
from shoal.node.metrics import NodeMetrics
from shoal.protocol.errors import Draining, Malformed, NotHeld, PeerFailed, ShoalError, WrongModel
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import Dispatch, DType, Partial, Rounding, WeightFormat
from shoal.protocol.net.channel import Reply, Request
from shoal.protocol.tensors import Rows, read_dispatch_body, tensor_bytes

DTYPE_OF_ROUNDING = {Rounding.FP32: DType.F32, Rounding.BF16: DType.BF16}


@dataclass(frozen=True, slots=True)
class Held:
    """What this node serves: packed experts of one model in one format."""

    model_root: bytes
    weight_format: WeightFormat
    spec: ExpertSpec
    experts: Mapping[LayerId, Mapping[ExpertId, PackedExpert]]


class ExpertServer:
    """Serves DISPATCH requests on held experts."""

    def __init__(
        self, held: Held, backend: ExpertBackend, worker: Worker, admission: Admission, clock: Callable[[], float]
    ) -> None:
        """clock: seconds, for durations; the loop's own has milliseconds only under uvloop."""
        self._held = held
        self._backend = backend
        self._worker = worker
        self._admission = admission
        self._clock = clock
        self._is_refusing_queued = False
        self.metrics = NodeMetrics()

    def refuse_queued(self, is_refusing: bool) -> None:
        """Whether requests that were let in and still wait for the kernel are refused when their turn comes."""
        self._is_refusing_queued = is_refusing

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
        experts = self._find(message)
        macs = message.num_pairs * self._held.spec.macs_per_row
        with self._admission.admit(macs):
            arrived = self._clock()
            rows = read_dispatch_body(message, request.body)
            result, compute_s = await self._worker.run(self._compute, experts, rows, message.rounding)
            elapsed_s = self._clock() - arrived
        self._admission.observe(macs, compute_s)
        self._count(request, compute_s)
        if not bool(torch.isfinite(result).all()):
            raise PeerFailed("the result of a kernel is not finite")
        reply = Partial(
            request.request_hash, message.num_tokens, message.hidden,
            _microseconds(max(0.0, elapsed_s - compute_s)), _microseconds(compute_s),
        )  # fmt: skip
        return Reply(reply, tensor_bytes(result))

    def _find(self, message: Dispatch) -> list[PackedExpert]:
        """The packed experts that a request names, in its order."""
        held = self._held
        if message.model_root != held.model_root or message.weight_format != held.weight_format:
            raise WrongModel("another model or another weight format")
        if message.hidden != held.spec.hidden or message.dtype != DTYPE_OF_ROUNDING[Rounding(message.rounding)]:
            raise Malformed("hidden size or dtype does not fit the model and the rounding")
        layer = held.experts.get(LayerId(message.layer), {})
        try:
            return [layer[ExpertId(expert)] for expert in message.experts]
        except KeyError as error:
            raise NotHeld(f"expert {error} of layer {message.layer} is not held here") from error

    def _compute(self, experts: list[PackedExpert], rows: Rows, rounding: int) -> tuple[torch.Tensor, float]:
        """On the worker: the sum, and the seconds it took."""
        if self._is_refusing_queued:
            raise Draining("this node pauses")
        started = self._clock()
        run = self._backend.run
        result = run(experts, rows.x, rows.row_idx, rows.offsets, rows.topk_weights, Rounding(rounding))
        return result, self._clock() - started

    def _count(self, request: Request, compute_s: float) -> None:
        message = request.message
        log_event(
            RequestServed(request.peer, message.layer, len(message.experts), message.num_tokens, compute_s * 1000)
        )
        self.metrics.requests_served += 1
        self.metrics.rows_computed += message.num_pairs
        self.metrics.compute_s += compute_s


def _microseconds(seconds: float) -> int:
    return min(int(seconds * 1e6), 2**32 - 1)
