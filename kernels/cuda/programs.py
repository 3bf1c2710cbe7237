"""The three programs that a device runs: gate and up with their activation, down with its weight, the ordered sum.

Canonical rounding 1 (docs/adr/0004): weights exactly as stored, products of bf16 accumulated in fp32, gate and up
rounded to bf16, h = bf16(silu(gate) * up), each weighted result rounded to bf16, the sum in fp32 in expert order.
Rounding 0 and weights stored as f32 multiply in fp32 (`DOT_F32`). So does the interpreter, which (3.9.0) multiplies the
bit patterns of bf16: products of bf16 numbers are exact in fp32, so the sums are the same up to their order.

No fp8 matrix instruction is used, on any card. It would need x in e4m3, whose 4 significant bits move an answer by
4.3 % (docs/adr/0007): an honest replica would look like an int8 cheat. x as a sum of two e4m3 numbers would be nearly
exact but costs two instructions of half the time. Hopper's fp8 units also add up in fewer bits than fp32 (DeepSeek-V3
report, §3.3.2). fp8 weights are upcast in registers, exactly, by the same code from Turing to Blackwell.

Importing this module imports Triton; `grouped_swiglu.py` does so at the first call. Shapes are compile-time constants:
a model has one pair of them.
"""

import triton
import triton.language as tl


@triton.jit
def gate_up_program(
    x,  # bf16 or f32 [T, HIDDEN]
    row_idx,  # i32[P]
    weights,  # i64[E, 6]: addresses of gate, its scales, up, its scales, down, its scales
    tile_expert,
    tile_begin,
    tile_end,
    hidden_out,  # bf16 or f32 [P, INTER]
    HIDDEN: tl.constexpr,
    INTER: tl.constexpr,
    CODES: tl.constexpr,
    GROUP: tl.constexpr,
    IS_ROUNDED: tl.constexpr,
    DOT_F32: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """hidden_out[p] = silu(gate(x[row_idx[p]])) * up(x[row_idx[p]]). Grid: tiles, blocks of INTER."""
    tile = tl.program_id(0)
    expert = tl.load(tile_expert + tile).to(tl.int64)
    pairs = tl.load(tile_begin + tile) + tl.arange(0, BLOCK_M)
    is_pair = pairs < tl.load(tile_end + tile)
    rows = tl.load(row_idx + pairs, mask=is_pair, other=0).to(tl.int64)
    outs = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    gate = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, HIDDEN, BLOCK_K):
        columns = k + tl.arange(0, BLOCK_K)
        mask = is_pair[:, None] & (columns < HIDDEN)[None, :]
        values = tl.load(x + rows[:, None] * HIDDEN + columns[None, :], mask=mask, other=0.0)
        address = weights + expert * 6
        gate = _add_product(gate, values, address, outs, k, INTER, HIDDEN, CODES, GROUP, DOT_F32, BLOCK_K)
        up = _add_product(up, values, address + 2, outs, k, INTER, HIDDEN, CODES, GROUP, DOT_F32, BLOCK_K)
    if IS_ROUNDED:
        gate = _round_to_bf16(gate)
        up = _round_to_bf16(up)
    product = gate / (1.0 + tl.exp(-gate)) * up
    if IS_ROUNDED:
        product = _round_to_bf16(product)
    mask = is_pair[:, None] & (outs < INTER)[None, :]
    place = hidden_out + pairs.to(tl.int64)[:, None] * INTER + outs[None, :]
    tl.store(place, product.to(hidden_out.dtype.element_ty), mask=mask)


@triton.jit
def down_program(
    hidden_in,  # bf16 or f32 [P, INTER]
    topk_weights,  # f32[P]
    weights,
    tile_expert,
    tile_begin,
    tile_end,
    terms,  # bf16 or f32 [P, HIDDEN]
    HIDDEN: tl.constexpr,
    INTER: tl.constexpr,
    CODES: tl.constexpr,
    GROUP: tl.constexpr,
    IS_ROUNDED: tl.constexpr,
    DOT_F32: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """terms[p] = topk_weights[p] * down(hidden_in[p]). Grid: tiles, blocks of HIDDEN."""
    tile = tl.program_id(0)
    expert = tl.load(tile_expert + tile).to(tl.int64)
    pairs = tl.load(tile_begin + tile) + tl.arange(0, BLOCK_M)
    is_pair = pairs < tl.load(tile_end + tile)
    outs = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    result = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, INTER, BLOCK_K):
        columns = k + tl.arange(0, BLOCK_K)
        mask = is_pair[:, None] & (columns < INTER)[None, :]
        values = tl.load(hidden_in + pairs.to(tl.int64)[:, None] * INTER + columns[None, :], mask=mask, other=0.0)
        address = weights + expert * 6 + 4
        result = _add_product(result, values, address, outs, k, HIDDEN, INTER, CODES, GROUP, DOT_F32, BLOCK_K)
    result *= tl.load(topk_weights + pairs, mask=is_pair, other=0.0)[:, None]
    if IS_ROUNDED:
        result = _round_to_bf16(result)
    mask = is_pair[:, None] & (outs < HIDDEN)[None, :]
    place = terms + pairs.to(tl.int64)[:, None] * HIDDEN + outs[None, :]
    tl.store(place, result.to(terms.dtype.element_ty), mask=mask)


@triton.jit
def sum_program(
    terms,  # bf16 or f32 [P, HIDDEN]
    first,  # i32[T + 1]
    pair,  # i32[P]
    y,  # f32[T, HIDDEN]
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y[r] = the terms of row r, one after another in expert order, in fp32. Grid: rows, blocks of HIDDEN.

    A launch of its own, because sums by atomic additions would depend on who comes first.
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < HIDDEN
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for i in range(tl.load(first + row), tl.load(first + row + 1)):
        start = tl.load(pair + i).to(tl.int64) * HIDDEN
        total += tl.load(terms + start + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + row * HIDDEN + columns, total, mask=mask)


@triton.jit
def _round_to_bf16(value):
    """fp32 to the nearest bf16 number, ties to even, still as fp32; NaN stays NaN.

    Spelled out, because Triton's interpreter (3.9.0) truncates in `.to(bfloat16)` where devices round. It runs once per
    output, not per product.
    """
    bits = value.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return tl.where(value != value, value, rounded.to(tl.float32, bitcast=True))


@triton.jit
def _add_product(
    total,
    values,  # [BLOCK_M, BLOCK_K]
    address,  # of a weight's address and, behind it, its scales'
    outs,
    k,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    CODES: tl.constexpr,
    GROUP: tl.constexpr,
    DOT_F32: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """total + values @ W[outs, k:k + BLOCK_K].T, W exactly as stored, in fp32."""
    rows = outs.to(tl.int64)
    weight = _weight_tile(address, outs, k, OUT, IN, CODES, GROUP, BLOCK_K)
    if DOT_F32:
        product = tl.dot(values.to(tl.float32), tl.trans(weight.to(tl.float32)), input_precision="ieee")
    else:
        product = tl.dot(values.to(tl.bfloat16), tl.trans(weight.to(tl.bfloat16)))
    if CODES == "e4m3":  # GROUP == BLOCK_K: one scale for this step and 128 rows
        scales = tl.load(address + 1).to(tl.pointer_type(tl.float32))
        place = scales + (rows // GROUP) * ((IN + GROUP - 1) // GROUP) + k // GROUP
        product *= tl.load(place, mask=outs < OUT, other=0.0)[None, :]
    if CODES == "int8":
        scales = tl.load(address + 1).to(tl.pointer_type(tl.bfloat16))
        place = scales + rows * ((IN + GROUP - 1) // GROUP) + k // GROUP
        product *= tl.load(place, mask=outs < OUT, other=0.0).to(tl.float32)[None, :]
    return total + product


@triton.jit
def _weight_tile(
    address,
    outs,
    k,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    CODES: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of a weight: numbers that bf16 holds (f32: that fp32 holds), scaled if its scales fit into bf16 too."""
    rows = outs.to(tl.int64)
    columns = k + tl.arange(0, BLOCK_K)
    mask = (outs < OUT)[:, None] & (columns < IN)[None, :]
    place = rows[:, None] * IN + columns[None, :]
    data = tl.load(address)
    # one return at the end: Triton compiles what stands behind a branch that returns, for all formats
    if CODES == "bf16":
        start = tl.multiple_of(data.to(tl.pointer_type(tl.bfloat16)), 16)
        weight = tl.load(start + place, mask=mask, other=0.0)
    elif CODES == "f32":
        start = tl.multiple_of(data.to(tl.pointer_type(tl.float32)), 16)
        weight = tl.load(start + place, mask=mask, other=0.0)
    elif CODES == "int8":
        start = tl.multiple_of(data.to(tl.pointer_type(tl.int8)), 16)
        weight = tl.load(start + place, mask=mask, other=0).to(tl.float32)
    elif CODES == "e4m3":
        start = tl.multiple_of(data.to(tl.pointer_type(tl.uint8)), 16)
        weight = _e4m3_value(tl.load(start + place, mask=mask, other=0))
    else:
        codes = _unpacked(tl.multiple_of(data.to(tl.pointer_type(tl.uint8)), 16), outs, k, OUT, IN, BLOCK_K)
        if CODES == "int4":
            scales = tl.load(address + 1).to(tl.pointer_type(tl.bfloat16))
            scale = _group_scales(scales, outs, k, OUT, IN, GROUP, BLOCK_K).to(tl.float32)
            weight = (codes - 8).to(tl.float32) * _spread(scale, BLOCK_K)
        else:
            scales = tl.load(address + 1).to(tl.pointer_type(tl.uint8))
            scale = _e8m0_value(_group_scales(scales, outs, k, OUT, IN, GROUP, BLOCK_K))
            weight = _e2m1_value(codes) * _spread(scale, BLOCK_K)
    return weight


@triton.jit
def _unpacked(start, outs, k, OUT: tl.constexpr, IN: tl.constexpr, BLOCK_K: tl.constexpr):
    """Nibbles of a tile as i32[BLOCK_N, BLOCK_K]: bytes are read once, side by side, and split in registers."""
    places = k // 2 + tl.arange(0, BLOCK_K // 2)
    mask = (outs < OUT)[:, None] & (places < IN // 2)[None, :]
    pair = tl.load(start + outs.to(tl.int64)[:, None] * (IN // 2) + places[None, :], mask=mask, other=0).to(tl.int32)
    return tl.interleave(pair & 15, pair >> 4)


@triton.jit
def _group_scales(start, outs, k, OUT: tl.constexpr, IN: tl.constexpr, GROUP: tl.constexpr, BLOCK_K: tl.constexpr):
    """Scales as stored of the groups of a step, [BLOCK_N, BLOCK_K / GROUP]; of groups behind the last: zeros."""
    groups = k // GROUP + tl.arange(0, BLOCK_K // GROUP)
    mask = (outs < OUT)[:, None] & (groups < (IN + GROUP - 1) // GROUP)[None, :]
    return tl.load(
        start + outs.to(tl.int64)[:, None] * ((IN + GROUP - 1) // GROUP) + groups[None, :], mask=mask, other=0
    )


@triton.jit
def _spread(scale, BLOCK_K: tl.constexpr):
    """Each group's scale to its columns: [BLOCK_N, BLOCK_K / GROUP] -> [BLOCK_N, BLOCK_K]."""
    wide = tl.broadcast_to(scale[:, :, None], (scale.shape[0], scale.shape[1], BLOCK_K // scale.shape[1]))
    return tl.reshape(wide, (scale.shape[0], BLOCK_K))


@triton.jit
def _e4m3_value(byte):
    """e4m3 as fp32, exactly: its bits, moved, are a half float of the value times 2^-8, subnormals included."""
    wide = byte.to(tl.uint16)
    half = (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.float16, bitcast=True)
    return half.to(tl.float32) * 256.0


@triton.jit
def _e2m1_value(code):
    """code: i32 0..15, sign · exponent (2 bits) · mantissa (1 bit). The subnormal 0.5 apart, exponent bias is 1."""
    exponent = (code >> 1) & 3
    normal = (((exponent + 126) << 23) | ((code & 1) << 22)).to(tl.float32, bitcast=True)
    size = tl.where(exponent == 0, (code & 1).to(tl.float32) * 0.5, normal)
    return tl.where(code >= 8, -size, size)


@triton.jit
def _e8m0_value(byte):
    """2^(byte - 127) as fp32: the byte is fp32's exponent, but 0, which is the subnormal 2^-127."""
    wide = byte.to(tl.int32)
    return tl.where(wide == 0, 1 << 22, wide << 23).to(tl.float32, bitcast=True)
