"""The Triton programs as compiled: to bf16 matrix instructions without a device, to the same answers on one.

The tests marked gpu need a process in which nothing was interpreted: `python -m pytest -m gpu`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shoal.experts.cuda_backend import LAYOUTS, CudaBackend
from shoal.experts.family import ExpertSpec
from shoal.protocol.messages import Rounding, WeightFormat
from tests.kernels.cuda_calls import SPEC, VARIANTS, compare, pack

COMPILER = Path(__file__).with_name("compile_cuda.py")

BOUND = {Rounding.FP32: 1e-5, Rounding.BF16: 5e-3}
"""Relative L2 against the reference, as `grouped_swiglu` states it for devices."""

TURING, AMPERE, ADA, HOPPER, BLACKWELL, GEFORCE_BLACKWELL = 75, 80, 89, 90, 100, 120


@pytest.mark.parametrize(
    ("weight_format", "architecture"),
    [(f, HOPPER) for f in WeightFormat if f is not WeightFormat.F32]
    + [(WeightFormat.FP8_BLOCK, a) for a in (AMPERE, ADA, BLACKWELL, GEFORCE_BLACKWELL)]
    + [(WeightFormat.INT4_G32, AMPERE)],
)
def test_the_programs_compile_to_bf16_matrix_instructions(
    weight_format: WeightFormat, architecture: int, tmp_path: Path
) -> None:
    counts = _compile("gate_up", weight_format, architecture, tmp_path)
    assert counts["mma"] > 0
    assert counts["bf16"] > 0
    assert counts["spills"] == 0
    assert counts["assembled_bytes"] > 0


def test_turing_which_has_no_bf16_multiplies_in_fp32(tmp_path: Path) -> None:
    counts = _compile("gate_up", WeightFormat.FP8_BLOCK, TURING, tmp_path)
    assert (counts["mma"], counts["spills"]) == (0, 0)
    assert counts["assembled_bytes"] > 0


@pytest.mark.parametrize("architecture", [AMPERE, HOPPER, GEFORCE_BLACKWELL])
def test_terms_are_ordered_before_sums_by_one_atomic_ticket_of_the_whole_device(
    architecture: int, tmp_path: Path
) -> None:
    counts = _compile("down", WeightFormat.FP8_BLOCK, architecture, tmp_path)
    assert counts["mma"] > 0
    assert (counts["tickets"], counts["spills"]) == (1, 0)


def _compile(program: str, weight_format: WeightFormat, architecture: int, cache: Path) -> dict[str, int]:
    layout = LAYOUTS[weight_format]
    arguments = (program, layout.codes.value, layout.group_size, layout.step, architecture)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(COMPILER), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("weight_format", WeightFormat)
@pytest.mark.parametrize("spec", [SPEC, *VARIANTS, ExpertSpec(hidden=7168, inter=2048)])
def test_a_device_agrees_with_the_reference(spec: ExpertSpec, weight_format: WeightFormat, rounding: Rounding) -> None:
    compare(CudaBackend(torch.device("cuda")), spec, weight_format, rounding, BOUND)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_call_gives_the_same_bits_a_hundred_times_over() -> None:
    """Sums are made by whichever program comes last: a race would show as another bit, sooner or later."""
    backend, spec = CudaBackend(torch.device("cuda")), ExpertSpec(hidden=2048, inter=256)
    packed = pack(backend, spec, WeightFormat.BF16, 16)
    x = torch.randn(64, spec.hidden, generator=torch.Generator().manual_seed(1)).bfloat16()
    call = (x, torch.arange(64).repeat(16), list(range(0, 64 * 17, 64)), torch.rand(64 * 16), Rounding.BF16)
    first = backend.run(packed, *call)  # type: ignore[arg-type]
    assert all(torch.equal(backend.run(packed, *call), first) for _ in range(100))  # type: ignore[arg-type]
