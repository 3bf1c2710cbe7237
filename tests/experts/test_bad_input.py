"""Whatever a back end is given, it answers rightly or raises a typed error: the same list for all of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from shoal.experts.backend import ExpertBackend, ExpertWeights, PackedExpert, QuantizedWeight
from shoal.experts.cpu_backend import CpuBackend
from shoal.experts.cuda_backend import CudaBackend
from shoal.experts.family import ExpertSpec
from shoal.experts.reference_backend import ReferenceBackend
from shoal.experts.weight_formats import expert_shapes, quantize_expert
from shoal.kernels import cpu
from shoal.kernels.activation import GPT_OSS
from shoal.kernels.cpu import CpuKernels
from shoal.kernels.reference import Biases
from shoal.protocol.errors import CheckpointError, InvalidRequest
from shoal.protocol.messages import Rounding, WeightFormat

SPEC = ExpertSpec(hidden=40, inter=24, activation=GPT_OSS, has_biases=True)
NO_BIASES = replace(SPEC, has_biases=False)

BACKENDS: dict[str, Callable[[], ExpertBackend]] = {"reference": ReferenceBackend}
if cpu.is_available():
    BACKENDS["cpu"] = lambda: CpuBackend(CpuKernels(2))
if not torch.cuda.is_available():  # in Triton's interpreter, which tests/conftest.py switched on
    BACKENDS["cuda"] = lambda: CudaBackend(torch.device("cpu"), is_interpreted=True)

BOUND = 1e-3


@dataclass(frozen=True)
class Call:
    """Arguments of `run`, good ones by default: three experts with 2, 0 and 1 rows."""

    x: torch.Tensor
    row_idx: torch.Tensor
    offsets: list[int]
    topk_weights: torch.Tensor


def good() -> Call:
    x = torch.randn(4, SPEC.hidden, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    return Call(x, torch.tensor([0, 2, 3]), [0, 2, 2, 3], torch.tensor([0.5, 0.25, 1.0]))


def weights_of(spec: ExpertSpec, weight_format: WeightFormat = WeightFormat.BF16, seed: int = 0) -> ExpertWeights:
    generator = torch.Generator().manual_seed(seed)
    shapes = expert_shapes(spec)
    matrices = {name: torch.randn(shape, generator=generator) * shape[1] ** -0.5 for name, shape in shapes.items()}
    biases = Biases(*(torch.randn(shape[0], generator=generator) for shape in shapes.values()))
    return quantize_expert(matrices, weight_format, "a test", biases if spec.has_biases else None)


def three(backend: ExpertBackend) -> list[PackedExpert]:
    return [backend.pack(SPEC, weights_of(SPEC, seed=seed)) for seed in range(3)]


def run(backend: ExpertBackend, experts: list[PackedExpert], call: Call) -> torch.Tensor:
    return backend.run(experts, call.x, call.row_idx, call.offsets, call.topk_weights, Rounding.BF16)


def expected(call: Call) -> torch.Tensor:
    backend = ReferenceBackend()
    return run(backend, three(backend), call)


def misaligned(tensor: torch.Tensor) -> torch.Tensor:
    raw = bytearray(tensor.nbytes + 1)
    raw[1:] = tensor.numpy().tobytes()
    array = np.frombuffer(raw, dtype=tensor.numpy().dtype, offset=1, count=tensor.numel())
    return torch.from_numpy(array.reshape(tensor.shape))


CONTRADICTIONS: dict[str, Callable[[Call], Call]] = {
    "x too narrow": lambda c: replace(c, x=c.x[:, :30].contiguous()),
    "x of one dimension": lambda c: replace(c, x=c.x[0]),
    "x of three dimensions": lambda c: replace(c, x=c.x[None]),
    "x of fp64": lambda c: replace(c, x=c.x.double()),
    "x of fp16": lambda c: replace(c, x=c.x.half()),
    "x of integers": lambda c: replace(c, x=c.x.int()),
    "x without memory": lambda c: replace(c, x=c.x.to("meta")),
    "x sparse": lambda c: replace(c, x=c.x.to_sparse()),
    "a negative row": lambda c: replace(c, row_idx=torch.tensor([0, -1, 3])),
    "a row too far": lambda c: replace(c, row_idx=torch.tensor([0, 2, 4])),
    "a row far below": lambda c: replace(c, row_idx=torch.tensor([0, 2, -(2**62)])),
    "rows of int32": lambda c: replace(c, row_idx=c.row_idx.int()),
    "rows in a matrix": lambda c: replace(c, row_idx=c.row_idx[None]),
    "weights too few": lambda c: replace(c, topk_weights=c.topk_weights[:2]),
    "weights of fp64": lambda c: replace(c, topk_weights=c.topk_weights.double()),
    "weights without memory": lambda c: replace(c, topk_weights=c.topk_weights.to("meta")),
    "offsets below zero": lambda c: replace(c, offsets=[-1, 2, 2, 3]),
    "offsets too far": lambda c: replace(c, offsets=[0, 2, 2, 4]),
    "offsets far beyond": lambda c: replace(c, offsets=[0, 2, 2, 2**70]),
    "offsets unsorted": lambda c: replace(c, offsets=[0, 2, 1, 3]),
    "offsets of fewer experts": lambda c: replace(c, offsets=[0, 2, 3]),
    "offsets of more experts": lambda c: replace(c, offsets=[0, 2, 2, 2, 3]),
    "no offsets": lambda c: replace(c, offsets=[]),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_arguments_that_contradict_each_other_are_a_typed_error(what: str, backend: str) -> None:
    made = BACKENDS[backend]()
    experts = three(made)
    with pytest.raises(InvalidRequest):
        run(made, experts, CONTRADICTIONS[what](good()))
    assert run(made, experts, good()).isfinite().all(), "and the next call is answered"


UNUSUAL: dict[str, Callable[[Call], Call]] = {
    "bf16 rows": lambda c: replace(c, x=c.x.bfloat16()),
    "misaligned rows": lambda c: replace(c, x=misaligned(c.x)),
    "misaligned weights": lambda c: replace(c, topk_weights=misaligned(c.topk_weights)),
    "misaligned indices": lambda c: replace(c, row_idx=misaligned(c.row_idx)),
    "rows with a gradient": lambda c: replace(c, x=c.x.clone().requires_grad_()),
    "weights with a gradient": lambda c: replace(c, topk_weights=c.topk_weights.clone().requires_grad_()),
    "a row that counts twice": lambda c: replace(c, row_idx=torch.tensor([2, 2, 2])),
    "a weight of nothing": lambda c: replace(c, topk_weights=torch.zeros(3)),
    "a negative weight": lambda c: replace(c, topk_weights=-c.topk_weights),
    "no pairs": lambda c: Call(c.x, c.row_idx[:0], [0, 0, 0, 0], c.topk_weights[:0]),
    "no rows": lambda c: Call(c.x[:0], c.row_idx[:0], [0, 0, 0, 0], c.topk_weights[:0]),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", UNUSUAL)
def test_what_is_unusual_but_means_something_is_answered(what: str, backend: str) -> None:
    made, call = BACKENDS[backend](), UNUSUAL[what](good())
    answer, truth = run(made, three(made), call), expected(call)
    assert answer.shape == truth.shape
    assert float((answer - truth).norm()) <= BOUND * float(truth.norm())


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("backend", BACKENDS)
def test_read_only_memory_is_read_all_the_same(backend: str) -> None:
    array = good().x.numpy().copy()
    array.flags.writeable = False
    made, call = BACKENDS[backend](), replace(good(), x=torch.from_numpy(array))
    assert float((run(made, three(made), call) - expected(call)).norm()) <= BOUND * float(expected(call).norm())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strided", [lambda x: torch.cat([x, x], 1)[:, ::2], lambda x: x.T.contiguous().T])
def test_rows_with_strides_are_answered_rightly_or_refused(
    backend: str, strided: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    made, call = BACKENDS[backend](), replace(good(), x=strided(good().x))
    try:
        answer = run(made, three(made), call)
    except InvalidRequest:
        return
    assert float((answer - expected(call)).norm()) <= BOUND * float(expected(call).norm())


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # numpy's, in Triton's interpreter: 0 times infinity
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_spoils_its_own_row_and_no_other(backend: str, value: float) -> None:
    made = BACKENDS[backend]()
    spoiled = replace(good(), topk_weights=torch.tensor([0.5, value, 1.0]))
    answer, clean = run(made, three(made), spoiled), run(made, three(made), good())
    assert not answer[2].isfinite().any()
    assert torch.equal(answer[[0, 1, 3]], clean[[0, 1, 3]])


BAD_EXPERTS: dict[str, Callable[[ExpertWeights], ExpertWeights]] = {
    "no biases": lambda w: replace(w, biases=None),
    "a bias too short": lambda w: replace(w, biases=biases_of(w)._replace(up=torch.zeros(23))),
    "a bias of the wrong matrix": lambda w: replace(w, biases=biases_of(w)._replace(down=torch.zeros(24))),
    "a bias of two dimensions": lambda w: replace(w, biases=biases_of(w)._replace(gate=torch.zeros(24, 1))),
    "a bias of fp64": lambda w: replace(w, biases=biases_of(w)._replace(gate=torch.zeros(24).double())),
    "a bias of integers": lambda w: replace(w, biases=biases_of(w)._replace(gate=torch.zeros(24).int())),
    "a bias that is NaN": lambda w: replace(w, biases=biases_of(w)._replace(down=torch.full((40,), torch.nan))),
    "a bias that is infinite": lambda w: replace(w, biases=biases_of(w)._replace(up=torch.full((24,), -torch.inf))),
    "a weight that is NaN": lambda w: replace(w, up=QuantizedWeight(w.up.data * torch.nan)),
    "a weight that is infinite": lambda w: replace(w, down=QuantizedWeight(w.down.data * torch.inf)),
    "a weight of another dtype": lambda w: replace(w, gate=QuantizedWeight(w.gate.data.float())),
    "a weight too small": lambda w: replace(w, gate=QuantizedWeight(w.gate.data[1:])),
    "a weight transposed": lambda w: replace(w, down=QuantizedWeight(w.down.data.T.contiguous())),
    "a weight in a list": lambda w: replace(w, gate=QuantizedWeight(w.gate.data.flatten())),
    "scales where none belong": lambda w: replace(w, gate=QuantizedWeight(w.gate.data, torch.ones(1, 1))),
}


def biases_of(weights: ExpertWeights) -> Biases:
    assert weights.biases is not None
    return weights.biases


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", BAD_EXPERTS)
def test_an_expert_that_is_not_what_its_spec_says_is_a_typed_error(what: str, backend: str) -> None:
    with pytest.raises(CheckpointError):
        BACKENDS[backend]().pack(SPEC, BAD_EXPERTS[what](weights_of(SPEC)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_biases_that_no_spec_asks_for_are_a_typed_error(backend: str) -> None:
    with pytest.raises(CheckpointError, match="this family has none"):
        BACKENDS[backend]().pack(NO_BIASES, weights_of(SPEC))


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_with_strides_and_biases_of_bf16_are_packed_rightly(backend: str) -> None:
    made, weights = BACKENDS[backend](), weights_of(SPEC)
    biases = Biases(*(bias.bfloat16() for bias in biases_of(weights)))
    plain = replace(weights, biases=biases)
    strided = replace(plain, gate=QuantizedWeight(weights.gate.data.T.contiguous().T))
    answers = [
        made.run([made.pack(SPEC, each)], good().x, torch.arange(4), [0, 4], torch.ones(4), Rounding.BF16)
        for each in (plain, strided)
    ]
    assert torch.equal(*answers)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weight_format", WeightFormat)
def test_a_back_end_says_beforehand_what_biases_take(backend: str, weight_format: WeightFormat) -> None:
    made = BACKENDS[backend]()
    packed = made.pack(SPEC, weights_of(SPEC, weight_format))
    assert packed.resident_bytes == made.resident_bytes(SPEC, weight_format)
    assert made.resident_bytes(SPEC, weight_format) > made.resident_bytes(NO_BIASES, weight_format)
