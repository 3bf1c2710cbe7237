"""The back end for CUDA devices: experts stay in device memory as stored, arithmetic of `kernels/cuda/`.

Chosen by whoever runs a node, never silently: it refuses to be made where there is no device or no Triton. Its numbers
are tested without a device by Triton's interpreter; its speed is unmeasured (docs/LOG.md). Knows experts and rows;
knows no peers and no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from shoal.experts.backend import ExpertBackend, ExpertWeights, PackedExpert, QuantizedWeight
from shoal.experts.device_memory import CudaMemory, DeviceMemory, ExpertRoom, HostMemory
from shoal.experts.family import ExpertSpec
from shoal.experts.row_checks import check_rows
from shoal.experts.weight_formats import checked_biases, dequantize_expert, stored_bytes
from shoal.kernels.cuda.grouped_swiglu import DeviceExperts, grouped_swiglu
from shoal.kernels.cuda.layout import Codes, Layout
from shoal.kernels.formats import decode_scale
from shoal.kernels.reference import Biases
from shoal.protocol.errors import Busy, InvalidRequest
from shoal.protocol.messages import Rounding, WeightFormat

LAYOUTS = {
    WeightFormat.FP8_BLOCK: Layout(Codes.E4M3, 128),
    WeightFormat.BF16: Layout(Codes.BF16),
    WeightFormat.F32: Layout(Codes.F32),
    WeightFormat.INT8_G128: Layout(Codes.INT8, 128),
    WeightFormat.INT4_G32: Layout(Codes.INT4, 32),
    WeightFormat.INT4_G128: Layout(Codes.INT4, 128),
    WeightFormat.MXFP4: Layout(Codes.E2M1, 32),
}
"""How each format's bytes are read on the device."""

FULL_RETRY_S = 1.0
"""When a call finds the device full: by then other calls in flight have given their buffers back."""


@dataclass(frozen=True, slots=True)
class CudaExpert:
    """An expert in device memory: gate, up and down, each data and scales (fp8 scales as f32, e8m0 as bytes), biases as
    f32."""

    spec: ExpertSpec
    format: WeightFormat
    weights: tuple[QuantizedWeight, QuantizedWeight, QuantizedWeight]
    biases: Biases | None = None

    @property
    def resident_bytes(self) -> int:
        """Bytes of device memory that its tensors hold."""
        return sum(tensor.untyped_storage().nbytes() for tensor in _tensors(self) if tensor is not None)

    @property
    def addresses(self) -> list[int]:
        """Nine addresses as `DeviceExperts` has them."""
        return [0 if tensor is None else tensor.data_ptr() for tensor in _tensors(self)]


class CudaBackend(ExpertBackend):
    """`ExpertBackend` on one CUDA device, for every format of `weight_formats.py`.

    `is_interpreted` is for tests: the programs run on the CPU in Triton's interpreter, which the environment variable
    TRITON_INTERPRET=1 must have switched on before the first call. `limit_bytes`: what this process may take of the
    device, experts and work buffers together; None: what is free. `memory`: the device's, unless a test has another.

    Raises:
        InvalidRequest: no such CUDA device, or Triton is not installed.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        is_interpreted: bool = False,
        limit_bytes: int | None = None,
        memory: DeviceMemory | None = None,
    ) -> None:
        if not is_interpreted and (device.type != "cuda" or not torch.cuda.is_available()):
            raise InvalidRequest(
                f"the CUDA back end on {device}: this machine or this build of torch has no such device"
            )
        if find_spec("triton") is None:
            raise InvalidRequest("the CUDA back end needs triton, which is not installed: pip install 'shoal[cuda]'")
        self._device = device
        self._room = ExpertRoom(memory or (HostMemory() if is_interpreted else CudaMemory(device)), limit_bytes)

    @property
    def name(self) -> str:
        return "cuda"

    @property
    def kernel_class(self) -> int:
        return 2

    @property
    def is_row_exact(self) -> bool:
        return False  # not promised: untested on a device

    def resident_bytes(self, spec: ExpertSpec, weight_format: WeightFormat) -> int:
        """Device memory that one packed expert will take, in bytes: as stored, fp8 scales and biases as fp32."""
        return stored_bytes(spec, weight_format)

    def free_bytes(self) -> int:
        """Device memory that experts may still take, within the limit."""
        return max(0, self._room.left_bytes())

    def pack(self, spec: ExpertSpec, weights: ExpertWeights) -> CudaExpert:
        dequantize_expert(spec, weights)  # for its checks: a NaN on the device would be found by a client
        biases = checked_biases(spec, weights)
        self._room.claim(stored_bytes(spec, weights.format))
        try:
            packed = tuple(self._move(weight, weights.format) for weight in (weights.gate, weights.up, weights.down))
            on_device = None if biases is None else Biases(*(self._copy(bias) for bias in biases))
        except torch.OutOfMemoryError:  # another program took what was free, or fragments did
            raise InvalidRequest("the device has no room for another expert") from None
        return CudaExpert(spec, weights.format, (packed[0], packed[1], packed[2]), on_device)

    def run(
        self,
        experts: Sequence[PackedExpert],
        x: torch.Tensor,
        row_idx: torch.Tensor,
        offsets: Sequence[int],
        topk_weights: torch.Tensor,
        rounding: Rounding,
    ) -> torch.Tensor:
        packed = [_own(expert) for expert in experts]
        check_rows([expert.spec for expert in packed], x, row_idx, offsets, topk_weights)
        if not packed:
            return torch.zeros(x.shape)
        _check_alike(packed)
        on_device = DeviceExperts(
            torch.tensor([expert.addresses for expert in packed], dtype=torch.int64).to(self._device),
            packed[0].spec.hidden,
            packed[0].spec.inter,
            LAYOUTS[packed[0].format],
            packed[0].spec.activation,
            packed[0].spec.has_biases,
        )
        is_rounded = Rounding(rounding) is Rounding.BF16
        try:
            with torch.no_grad():
                return grouped_swiglu(on_device, x, row_idx, offsets, topk_weights, is_rounded=is_rounded).cpu()
        except torch.OutOfMemoryError:  # this call is too large for what is left: a replica may have more
            raise Busy("the device has no memory left for this call", FULL_RETRY_S) from None

    def _move(self, weight: QuantizedWeight, weight_format: WeightFormat) -> QuantizedWeight:
        """A copy on the device, in memory of its own."""
        scale = weight.scale
        if scale is not None and weight_format is WeightFormat.FP8_BLOCK:
            scale = decode_scale(scale)
        if scale is not None and weight_format is WeightFormat.MXFP4:
            scale = scale.view(torch.uint8)
        return QuantizedWeight(self._copy(weight.data), None if scale is None else self._copy(scale))

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, copy=True, memory_format=torch.contiguous_format)


def _tensors(expert: CudaExpert) -> list[torch.Tensor | None]:
    weights: list[torch.Tensor | None] = [part for each in expert.weights for part in (each.data, each.scale)]
    return weights + list(expert.biases or (None, None, None))


def _own(expert: PackedExpert) -> CudaExpert:
    if not isinstance(expert, CudaExpert):
        raise InvalidRequest(f"an expert packed by another back end: {type(expert).__name__}")
    return expert


def _check_alike(experts: Sequence[CudaExpert]) -> None:
    """Raises InvalidRequest unless one launch can run them all."""
    kinds = {(expert.spec, expert.format) for expert in experts}
    if len(kinds) > 1:
        raise InvalidRequest(f"experts of {len(kinds)} shapes or formats in one call; a model has one of each")
