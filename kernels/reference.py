"""Experts in plain torch: the oracle that every faster kernel is compared with.

A grouped SwiGLU over ragged groups of rows. Knows matrices and rows; knows no checkpoints, no formats, no peers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.functional import linear, silu

from shoal.kernels.activation import SILU, Activation


class Biases(NamedTuple):
    """What is added to the products of an expert's matrices: gate f32[I], up f32[I], down f32[H]."""

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True, slots=True)
class SwiGLU:
    """One expert: gate f32[I, H], up f32[I, H], down f32[H, I], and what stands between them."""

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    activation: Activation = SILU
    biases: Biases | None = None

    @property
    def matrices(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gate, up, down."""
        return self.gate, self.up, self.down


def grouped_swiglu(
    experts: Sequence[SwiGLU],
    x: torch.Tensor,
    row_idx: torch.Tensor,
    offsets: Sequence[int],
    topk_weights: torch.Tensor,
    *,
    is_rounded: bool,
) -> torch.Tensor:
    """Weighted partial sum: y[t] = sum over pairs p of row t of topk_weights[p] * expert(p)(x[t]), in fp32.

    x: f32|bf16[T, H] · row_idx: i64[P], rows of x grouped by expert: expert i has the pairs offsets[i]:offsets[i + 1]
    · offsets: len(experts) + 1 ascending integers from 0 to P · topk_weights: f32[P]. Returns f32[T, H].

    `is_rounded` False is "rounding 0": fp32 throughout. True is "rounding 1", the canonical arithmetic (DESIGN §7):
    x as bf16, products accumulated in fp32 and biases added, gate and up rounded to bf16, h = bf16(silu(gate) * up) or
    what else the activation says, down in fp32, its weighted result rounded to bf16, the sum in fp32.
    Experts are added in the order given, rows in pair order, so that a result does not depend on who else is in the
    batch. Splitting the experts over several calls changes a sum by <= 1e-6 relative in rounding 0. In rounding 1 it
    changes nothing but for 3 sums in 100,000, whose last fp32 bit moves: terms of 8 significant bits add up exactly in
    24 (docs/adr/0004).
    Error of rounding 1 against fp64 on the same weights: <= 5e-3 relative L2, from the four bf16 roundings.

    Arguments are trusted; the back end checks them.
    """
    y = torch.zeros(x.shape, dtype=torch.float32)
    rows = x.to(torch.bfloat16).float() if is_rounded else x.float()
    for expert, begin, end in zip(experts, offsets, offsets[1:], strict=False):
        if begin == end:
            continue
        pairs = row_idx[begin:end]
        term = swiglu(expert, rows[pairs], is_rounded=is_rounded) * topk_weights[begin:end, None]
        # not index_add_, which starts OpenMP's threads even for one row: 27 ms instead of 2 us on two busy cores
        y.index_put_((pairs,), _round_to_bf16(term) if is_rounded else term, accumulate=True)
    return y


def swiglu(expert: SwiGLU, rows: torch.Tensor, *, is_rounded: bool) -> torch.Tensor:
    """down(activation(gate(x), up(x))) of one expert, rounded as in `grouped_swiglu`. rows: f32[N, H]. Returns
    f32[N, H]."""
    biases = expert.biases or (None, None, None)
    gate, up = linear(rows, expert.gate, biases[0]), linear(rows, expert.up, biases[1])
    if is_rounded:
        gate, up = _round_to_bf16(gate), _round_to_bf16(up)
    hidden = activate(gate, up, expert.activation)
    return linear(_round_to_bf16(hidden) if is_rounded else hidden, expert.down, biases[2])


def activate(gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """h of gate and up, both f32 of one shape: the formula of `activation.py`. NaN stays NaN."""
    limit = activation.limit
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    # torch's own SiLU where it is one, for the last bit: transformers uses it
    glu = silu(gate) if activation.alpha == 1 else gate * torch.sigmoid(activation.alpha * gate)
    return glu * (up + activation.up_offset)


def _round_to_bf16(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.bfloat16).float()
