"""Compiles the gate and up program for a DeepSeek-V3 expert and prints what became of it, as JSON; needs no device.

A program of its own, because Triton's interpreter changes Triton for the rest of a process.
Usage: python compile_cuda.py CODES GROUP STEP ARCHITECTURE
"""

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from shoal.kernels.cuda import programs
from shoal.kernels.cuda.grouped_swiglu import BLOCK_N


def main() -> None:
    """Print {mma, bf16, spills}: numbers of instructions in the PTX, which has been assembled too."""
    codes, (group, step, architecture) = sys.argv[1], map(int, sys.argv[2:])
    constants = {"HIDDEN": 7168, "INTER": 2048, "CODES": codes, "GROUP": group, "IS_ROUNDED": True, "DOT_F32": False}
    constants |= {"BLOCK_M": 16, "BLOCK_N": BLOCK_N, "BLOCK_K": step}
    types = ("*bf16", "*i32", "*i64", "*i32", "*i32", "*i32", "*bf16")
    signature = dict(zip(programs.gate_up_program.arg_names, types, strict=False))
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(types))}
    source = ASTSource(programs.gate_up_program, signature | dict.fromkeys(constants, "constexpr"), constants, aligned)
    built = triton.compile(source, GPUTarget("cuda", architecture, 32), {"enable_fp_fusion": True})
    ptx = built.asm["ptx"]
    counts = {"mma": ptx.count("mma.sync"), "bf16": ptx.count("bf16.bf16.f32"), "spills": ptx.count("ld.local")}
    print(json.dumps(counts | {"assembled_bytes": len(built.asm["cubin"])}))


if __name__ == "__main__":
    main()
