"""Whether the arguments of a back end's `run` fit together: the same words from every back end."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from shoal.experts.family import ExpertSpec
from shoal.protocol.errors import InvalidRequest


def check_rows(
    specs: Sequence[ExpertSpec],
    x: torch.Tensor,
    row_idx: torch.Tensor,
    offsets: Sequence[int],
    topk_weights: torch.Tensor,
) -> None:
    """Raises InvalidRequest if the arguments of `run` contradict each other, or are no plain tensors of the host."""
    check_plain(x, row_idx, topk_weights)
    if x.ndim != 2 or x.dtype not in (torch.float32, torch.bfloat16):
        raise InvalidRequest(f"x is {x.dtype}{list(x.shape)}, not a matrix of float32 or bfloat16")
    for spec in specs:
        if spec.hidden != x.shape[1]:
            raise InvalidRequest(f"x has width {x.shape[1]}, the expert {spec.hidden}")
    if row_idx.ndim != 1 or row_idx.dtype is not torch.int64:
        raise InvalidRequest(f"row_idx is {row_idx.dtype}{list(row_idx.shape)}, not a list of int64")
    if topk_weights.dtype is not torch.float32 or topk_weights.shape != row_idx.shape:
        raise InvalidRequest(
            f"topk_weights is {topk_weights.dtype}{list(topk_weights.shape)}, not float32{list(row_idx.shape)}"
        )
    _check_offsets(offsets, len(specs), row_idx.numel())
    if row_idx.numel() and not 0 <= int(row_idx.min()) <= int(row_idx.max()) < x.shape[0]:
        raise InvalidRequest(f"row_idx {int(row_idx.min())}..{int(row_idx.max())} for {x.shape[0]} rows")


def check_plain(*tensors: torch.Tensor) -> None:
    """Raises InvalidRequest unless all are dense tensors in the host's memory."""
    for tensor in tensors:
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise InvalidRequest(f"a tensor of {tensor.layout} on {tensor.device}, not a dense one of the host")


def _check_offsets(offsets: Sequence[int], num_experts: int, num_pairs: int) -> None:
    is_right = len(offsets) == num_experts + 1 and offsets[0] == 0 and offsets[-1] == num_pairs
    if not is_right or any(begin > end for begin, end in pairwise(offsets)):
        raise InvalidRequest(
            f"offsets {list(offsets[:8])} must ascend from 0 to {num_pairs} in {num_experts + 1} entries"
        )
