"""Who is compared: by our weight format, ours and the peers' ways to run an expert in about as many bits."""

from collections.abc import Mapping
from dataclasses import dataclass

from shoal.protocol.messages import WeightFormat

HERE, GGML, KT, TRANSFORMERS = "here", "ggml", "kt", "transformers"
"""Environments: the one that runs this, and those of `environments.py`."""

LICENCES = {"shoal": "Apache-2.0", "torch": "BSD-3-Clause", "ggml": "MIT", "kt-kernel": "Apache-2.0"}


@dataclass(frozen=True, slots=True)
class MemberSpec:
    """One column of the comparison: what is printed, where it runs, which program and which variant of it."""

    name: str
    environment: str
    program: str
    variant: str


BASELINE = MemberSpec("torch bf16 prepacked", HERE, "torch_ops", "bf16")
"""What all ratios are to."""


def ours(weight_format: WeightFormat) -> MemberSpec:
    """Our kernels in a format."""
    return MemberSpec("shoal", HERE, "ours", weight_format.name.lower())


def _ggml(variant: str) -> MemberSpec:
    return MemberSpec(f"ggml {variant.replace('-', ' ')}", GGML, "ggml", variant)


def _kt(variant: str) -> MemberSpec:
    return MemberSpec(f"kt-kernel {variant}", KT, "kt", variant)


def _torch(variant: str, operator: str) -> MemberSpec:
    return MemberSpec(f"torch {operator}", HERE, "torch_ops", variant)


PEERS: Mapping[WeightFormat, tuple[MemberSpec, ...]] = {
    WeightFormat.FP8_BLOCK: (_kt("fp8"),),
    WeightFormat.BF16: (_ggml("bf16-mul_mat_id"), _ggml("bf16-mul_mat"), _kt("bf16")),
    WeightFormat.INT8_G128: (
        _torch("int8pack", "_weight_int8pack_mm"),
        _torch("int8dynamic", "_int_mm"),
        _ggml("q8_0-mul_mat_id"),
        _ggml("q8_0-mul_mat"),
        _kt("int8"),
    ),
    WeightFormat.INT4_G32: (_ggml("q4_0-mul_mat_id-repack"), _ggml("q4_0-mul_mat-repack")),
    WeightFormat.INT4_G128: (
        _torch("int4pack", "_weight_int4pack_mm"),
        _ggml("q4_K-mul_mat_id"),
        _ggml("q4_K-mul_mat-repack"),
        _kt("int4"),
    ),
    WeightFormat.MXFP4: (_ggml("mxfp4-mul_mat_id"), _kt("mxfp4")),
}
"""No peer runs f32 experts."""
