"""Compiles a program for a DeepSeek-V3 expert and prints what became of it, as JSON; needs no device.

A program of its own, because Triton's interpreter changes Triton for the rest of a process.
Usage: python compile_cuda.py gate_up|down CODES GROUP STEP ARCHITECTURE
"""

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from shoal.kernels.cuda import programs
from shoal.kernels.cuda.grouped_swiglu import BLOCK_N

TYPES = {
    "gate_up": ("*bf16", "*i32", "*i64", "*i32", "*i32", "*i32", "*bf16", "*i32", "i32", "fp32", "fp32", "fp32"),
    "down": (
        "*bf16", "*i32", "*fp32", "*i64", "*i32", "*i32", "*i32", "*i32", "*i32", "*i32", "*bf16", "*fp32",
    ),
}  # fmt: skip


def main() -> None:
    """Print {mma, bf16, spills, tickets}: numbers of instructions in the PTX, which has been assembled too."""
    name, codes, (group, step, architecture) = sys.argv[1], sys.argv[2], map(int, sys.argv[3:])
    program = {"gate_up": programs.gate_up_program, "down": programs.down_program}[name]
    constants = {"HIDDEN": 7168, "INTER": 2048, "CODES": codes, "GROUP": group, "IS_ROUNDED": True, "DOT_F32": False}
    constants |= {"HAS_BIASES": True, "BLOCK_M": 16, "BLOCK_N": BLOCK_N, "BLOCK_K": step}
    signature = dict(zip(program.arg_names, TYPES[name], strict=False))
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(TYPES[name]) if kind.startswith("*")}
    source = ASTSource(program, signature | dict.fromkeys(constants, "constexpr"), constants, aligned)
    built = triton.compile(source, GPUTarget("cuda", architecture, 32), {"enable_fp_fusion": True})
    ptx = built.asm["ptx"]
    counts = {"mma": ptx.count("mma.sync"), "bf16": ptx.count("bf16.bf16.f32"), "spills": ptx.count("ld.local")}
    counts["tickets"] = ptx.count("atom.global.gpu.acq_rel.add")
    print(json.dumps(counts | {"assembled_bytes": len(built.asm["cubin"])}))


if __name__ == "__main__":
    main()
