"""Launches the device programs: the same sum as `kernels/reference.py`, from weights as stored.

Two launches a call, however many experts: gate and up, then down with the ordered sum. Knows addresses, rows and tiles;
knows no checkpoints and no peers. Speed on a device: unmeasured (docs/LOG.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

import torch

from shoal.kernels.activation import SILU, Activation
from shoal.kernels.cuda.layout import Codes, Layout
from shoal.kernels.cuda.tiles import Plan, choose_tile_rows, make_plan

WARPS = 4
"""Of a program; Triton's default, written down. Untuned."""

BLOCK_N = 64
"""Outputs of a program. Untuned."""


@dataclass(frozen=True)
class DeviceExperts:
    """The experts of one call: `addresses` i64[E, 9] on the device, of gate, its scales, up, its scales, down, its
    scales, and f32 biases of gate, up and down (0: none), each of memory that lives until the call has ended."""

    addresses: torch.Tensor
    hidden: int
    inter: int
    layout: Layout
    activation: Activation = SILU
    has_biases: bool = False


@dataclass(frozen=True)
class Launch:
    """A call that is planned: its rows' way through its experts is on the device. `run` it with any x, any number of
    times."""

    experts: DeviceExperts
    plan: Plan
    tile_rows: int
    is_rounded: bool

    @cached_property
    def programs(self) -> ModuleType:
        from shoal.kernels.cuda import programs

        return programs

    @property
    def is_interpreted(self) -> bool:
        """Only Triton's interpreter runs programs on tensors of the host."""
        return self.experts.addresses.device.type == "cpu"

    @property
    def number_type(self) -> torch.dtype:
        """Of what is handed from one program to the next."""
        return torch.bfloat16 if self.is_rounded else torch.float32

    @property
    def constants(self) -> dict[str, int | str | bool]:
        """Compile-time arguments of both matrix programs."""
        layout = self.experts.layout
        return {
            "HIDDEN": self.experts.hidden,
            "INTER": self.experts.inter,
            "CODES": layout.codes.value,
            "GROUP": layout.group_size,
            "HAS_BIASES": self.experts.has_biases,
            "IS_ROUNDED": self.is_rounded,
            "DOT_F32": not self.is_rounded or layout.codes is Codes.F32 or self.is_interpreted,
            "BLOCK_M": self.tile_rows,
            "BLOCK_N": BLOCK_N,
            "BLOCK_K": layout.step,
        }

    def run(self, x: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
        """The two launches: f32[T, H] of x: f32|bf16[T, H] and topk_weights: f32[P]."""
        hidden, device = self.experts.hidden, self.experts.addresses.device
        # y, then the tickets; the first launch fills both with zeros
        zeroed = torch.empty(len(x) * (hidden + num_blocks(hidden)), dtype=torch.int32, device=device)
        products = _gate_up(self, x.to(device, self.number_type).contiguous(), zeroed)
        y = zeroed[: x.numel()].view(torch.float32).view(x.shape)
        _down(self, products, topk_weights.to(device).contiguous(), y, zeroed[x.numel() :])
        return y

    def grid(self, width: int) -> tuple[int, int]:
        # tiles first: those of one expert run side by side and find its weights in the cache
        return self.plan.num_tiles, num_blocks(width)


def num_blocks(width: int) -> int:
    """Blocks of `BLOCK_N` outputs that cover a width."""
    return -(-width // BLOCK_N)


def grouped_swiglu(
    experts: DeviceExperts,
    x: torch.Tensor,
    row_idx: torch.Tensor,
    offsets: Sequence[int],
    topk_weights: torch.Tensor,
    *,
    is_rounded: bool,
) -> torch.Tensor:
    """Weighted partial sum as in `kernels.reference.grouped_swiglu`; the answer is on the device of `experts`.

    x: f32|bf16[T, H] · row_idx: i64[P] on the host · offsets: E + 1 ascending integers · topk_weights: f32[P]. Returns
    f32[T, H]. The same call gives the same bits: no atomic additions. Against the reference: <= 5e-3 relative L2 in
    rounding 1 (sums in another order may round to another bf16), <= 1e-5 in rounding 0.

    Arguments are trusted; the back end checks them.
    """
    if not row_idx.numel():
        return torch.zeros(x.shape, dtype=torch.float32, device=experts.addresses.device)
    return plan_launch(experts, row_idx, offsets, len(x), is_rounded=is_rounded).run(x, topk_weights)


def plan_launch(
    experts: DeviceExperts, row_idx: torch.Tensor, offsets: Sequence[int], num_rows: int, *, is_rounded: bool
) -> Launch:
    """The part of `grouped_swiglu` that the host does: tiles, and each row's terms in order. At least one pair."""
    tile_rows = choose_tile_rows(offsets)
    plan = make_plan(row_idx, offsets, num_rows, tile_rows, experts.addresses.device)
    return Launch(experts, plan, tile_rows, is_rounded)


def _gate_up(launch: Launch, rows: torch.Tensor, zeroed: torch.Tensor) -> torch.Tensor:
    """h of every pair, [P, I]."""
    experts, plan, activation = launch.experts, launch.plan, launch.experts.activation
    products = torch.empty(len(plan.row_idx), experts.inter, dtype=launch.number_type, device=rows.device)
    launch.programs.gate_up_program[launch.grid(experts.inter)](
        rows,
        plan.row_idx,
        experts.addresses,
        plan.tile_expert,
        plan.tile_begin,
        plan.tile_end,
        products,
        zeroed,
        len(zeroed),
        activation.limit,
        activation.alpha,
        activation.up_offset,
        num_warps=WARPS,
        **launch.constants,
    )
    return products


def _down(
    launch: Launch, products: torch.Tensor, topk_weights: torch.Tensor, y: torch.Tensor, tickets: torch.Tensor
) -> None:
    """The sum of each row's weighted results, into `y`."""
    experts, plan = launch.experts, launch.plan
    terms = torch.empty(len(products), experts.hidden, dtype=launch.number_type, device=products.device)
    launch.programs.down_program[launch.grid(experts.hidden)](
        products,
        plan.row_idx,
        topk_weights,
        experts.addresses,
        plan.tile_expert,
        plan.tile_begin,
        plan.tile_end,
        plan.first_pair,
        plan.pair_of_row,
        tickets,
        terms,
        y,
        num_warps=WARPS,
        **launch.constants,
    )
