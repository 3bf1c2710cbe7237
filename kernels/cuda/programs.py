"""The two programs that a device runs: gate and up with their activation, then down with its weight and ordered sum.

Canonical rounding 1 (docs/adr/0004, 0008): weights exactly as stored, products of bf16 accumulated in fp32, biases
added, gate and up rounded to bf16, h = bf16(activation), each weighted result rounded to bf16, the sum in fp32 in
expert order.
Rounding 0 and weights stored as f32 multiply in fp32 (`DOT_F32`). So does the interpreter, which (3.9.0) multiplies the
bit patterns of bf16: products of bf16 numbers are exact in fp32, so the sums are the same up to their order.

No fp8 matrix instruction is used, on any card: docs/adr/0010 has the error of each way to use one. fp8 weights are
upcast in registers, exactly, by the same code from Turing to Blackwell.

The sum needs no launch of its own and no atomic addition of results: whoever finishes a row's last term adds up all of
that row's terms, in expert order (`_add_up_finished_rows`). Only tickets are counted atomically, so the same call gives
the same bits.

Importing this module imports Triton; `grouped_swiglu.py` does so at the first call. Shapes are compile-time constants:
a model has one pair of them.
"""

import triton
import triton.language as tl

ADDRESSES = tl.constexpr(9)
"""Of an expert, in `weights`."""

ZEROS_AT_ONCE = tl.constexpr(1024)


@triton.jit(do_not_specialize=["num_zeroed"])
def gate_up_program(
    x,  # bf16 or f32 [T, HIDDEN]
    row_idx,  # i32[P]
    weights,  # i64[E, 9]: addresses of gate, its scales, up, its scales, down, its scales; of the three biases
    tile_expert,
    tile_begin,
    tile_end,
    hidden_out,  # bf16 or f32 [P, INTER]
    zeroed,  # i32[num_zeroed]: y and the tickets of `down_program`, which begins when this launch has ended
    num_zeroed,
    limit,  # f32: of kernels/activation.py, as alpha and up_offset
    alpha,
    up_offset,
    HIDDEN: tl.constexpr,
    INTER: tl.constexpr,
    CODES: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_BIASES: tl.constexpr,
    IS_ROUNDED: tl.constexpr,
    DOT_F32: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """hidden_out[p] = h of gate(x[row_idx[p]]) and up(x[row_idx[p]]). Grid: tiles, blocks of INTER."""
    _write_zeros(zeroed, num_zeroed)
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
        address = weights + expert * ADDRESSES
        gate = _add_product(gate, values, address, outs, k, INTER, HIDDEN, CODES, GROUP, DOT_F32, BLOCK_K)
        up = _add_product(up, values, address + 2, outs, k, INTER, HIDDEN, CODES, GROUP, DOT_F32, BLOCK_K)
    if HAS_BIASES:
        gate += _bias(weights + expert * ADDRESSES + 6, outs, INTER)
        up += _bias(weights + expert * ADDRESSES + 7, outs, INTER)
    if IS_ROUNDED:
        gate = _round_to_bf16(gate)
        up = _round_to_bf16(up)
    # comparisons, because they keep NaN
    gate = tl.where(gate > limit, limit, gate)
    up = tl.where(up > limit, limit, up)
    up = tl.where(up < -limit, -limit, up)
    product = gate / (1.0 + tl.exp(-alpha * gate)) * (up + up_offset)
    if IS_ROUNDED:
        product = _round_to_bf16(product)
    mask = is_pair[:, None] & (outs < INTER)[None, :]
    place = hidden_out + pairs.to(tl.int64)[:, None] * INTER + outs[None, :]
    tl.store(place, product.to(hidden_out.dtype.element_ty), mask=mask)


@triton.jit
def down_program(
    hidden_in,  # bf16 or f32 [P, INTER]
    row_idx,  # i32[P]
    topk_weights,  # f32[P]
    weights,
    tile_expert,
    tile_begin,
    tile_end,
    first_pair,  # i32[T + 1]: row r has the pairs pair_of_row[first_pair[r]:first_pair[r + 1]], in expert order
    pair_of_row,  # i32[P]
    tickets,  # i32[T, blocks of HIDDEN], zeros
    terms,  # bf16 or f32 [P, HIDDEN]
    y,  # f32[T, HIDDEN], zeros
    HIDDEN: tl.constexpr,
    INTER: tl.constexpr,
    CODES: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_BIASES: tl.constexpr,
    IS_ROUNDED: tl.constexpr,
    DOT_F32: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """terms[p] = topk_weights[p] * down(hidden_in[p]); y[r] = their sum, in expert order. Grid: tiles, blocks of
    HIDDEN."""
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
        address = weights + expert * ADDRESSES + 4
        result = _add_product(result, values, address, outs, k, HIDDEN, INTER, CODES, GROUP, DOT_F32, BLOCK_K)
    if HAS_BIASES:
        result += _bias(weights + expert * ADDRESSES + 8, outs, HIDDEN)
    result *= tl.load(topk_weights + pairs, mask=is_pair, other=0.0)[:, None]
    if IS_ROUNDED:
        result = _round_to_bf16(result)
    mask = is_pair[:, None] & (outs < HIDDEN)[None, :]
    place = terms + pairs.to(tl.int64)[:, None] * HIDDEN + outs[None, :]
    tl.store(place, result.to(terms.dtype.element_ty), mask=mask)
    rows = tl.load(row_idx + pairs, mask=is_pair, other=0).to(tl.int64)
    _add_up_finished_rows(terms, y, first_pair, pair_of_row, tickets, rows, is_pair, outs, HIDDEN, BLOCK_M, BLOCK_N)


@triton.jit
def _add_up_finished_rows(
    terms,
    y,
    first_pair,
    pair_of_row,
    tickets,
    rows,  # i64[BLOCK_M], of this program's pairs
    is_pair,
    outs,
    HIDDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """y[r, outs] for those of `rows` whose last term, by whatever program, is now written.

    Each pair takes a ticket of its row and block of columns; who gets the last one adds up. As in CUDA's
    threadFenceReduction sample: a barrier orders all threads' stores before the tickets (acquire and release, of the
    whole device), another the tickets before the loads; `.cg` keeps those away from an L1 that may be older.
    """
    tl.debug_barrier()
    ticket = tl.atomic_add(tickets + rows * tl.num_programs(1) + tl.program_id(1), 1, mask=is_pair, sem="acq_rel")
    tl.debug_barrier()
    first = tl.load(first_pair + rows, mask=is_pair, other=0)
    count = tl.load(first_pair + rows + 1, mask=is_pair, other=0) - first
    is_last = is_pair & (ticket == count - 1)
    is_out = (outs < HIDDEN)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for i in range(tl.max(tl.where(is_last, count, 0), axis=0)):
        has_term = is_last & (i < count)
        pair = tl.load(pair_of_row + first + i, mask=has_term, other=0).to(tl.int64)
        place = terms + pair[:, None] * HIDDEN + outs[None, :]
        term = tl.load(place, mask=has_term[:, None] & is_out, other=0.0, cache_modifier=".cg")
        total += term.to(tl.float32)
    tl.store(y + rows[:, None] * HIDDEN + outs[None, :], total, mask=is_last[:, None] & is_out)


@triton.jit
def _write_zeros(zeroed, num_zeroed):
    """Zeros in `zeroed`, shared out among all programs of the launch."""
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    num_programs = tl.num_programs(0) * tl.num_programs(1)
    for start in range(program * ZEROS_AT_ONCE, num_zeroed, num_programs * ZEROS_AT_ONCE):
        places = start + tl.arange(0, ZEROS_AT_ONCE)
        tl.store(zeroed + places, 0, mask=places < num_zeroed)


@triton.jit
def _bias(address, outs, OUT: tl.constexpr):
    """A bias as [1, BLOCK_N], f32."""
    start = tl.load(address).to(tl.pointer_type(tl.float32))
    return tl.load(start + outs, mask=outs < OUT, other=0.0)[None, :]


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
