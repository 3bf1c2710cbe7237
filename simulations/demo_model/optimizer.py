"""The optimizer: Muon for matrices, AdamW for everything else, behind one `step(rate)`.

Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest orthogonal matrix, so every direction learns
at one speed; with the width-aware factor of arXiv 2502.16982 it takes AdamW's learning rates. On this model it
reaches AdamW's held-out loss in clearly fewer steps, which on two CPU cores is what counts. It knows nothing of the
schedule: the loop passes the rate.
"""

import torch
from torch import Tensor

from shoal.simulations.demo_model.network import Network

MUON_MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Quintic coefficients from the Muon reference: fastest growth of small singular values."""
NEWTON_SCHULZ_ROUNDS = 5
UPDATE_RMS = 0.2
"""Makes a Muon update as large as a typical AdamW update (arXiv 2502.16982, eq. 4)."""
ADAM_BETAS = (0.9, 0.95)
ADAM_EPS = 1e-10
ROUTER = "mlp.gate.weight"
ROUTER_RATE = 0.02
"""A router's share of the rate: faster, it outruns the biases that balance it."""


def orthogonalize(matrices: Tensor) -> Tensor:
    """Approximate polar factor of each `[..., O, I]` matrix by a quintic Newton-Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)).bfloat16()
    for _ in range(NEWTON_SCHULZ_ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    orthogonal: Tensor = x.mT if is_tall else x
    return orthogonal.float()


class Muon:
    """Momentum, orthogonalised, over matrices and stacks of matrices."""

    def __init__(self, matrices: list[torch.nn.Parameter]) -> None:
        # Equal shapes are stepped as one stack: 9 batched products instead of hundreds of small ones.
        shapes = dict.fromkeys(p.shape[-2:] for p in matrices)
        self._stacks = [[p for p in matrices if p.shape[-2:] == shape] for shape in shapes]
        self._momenta = [torch.zeros_like(self._stack(stack)) for stack in self._stacks]

    @torch.no_grad()
    def step(self, rate: float, weight_decay: float) -> None:
        for stack, momentum in zip(self._stacks, self._momenta, strict=True):
            gradient = self._stack([torch.zeros_like(p) if p.grad is None else p.grad for p in stack])
            momentum.lerp_(gradient, 1 - MUON_MOMENTUM)
            update = orthogonalize(gradient.lerp(momentum, MUON_MOMENTUM))
            factor = UPDATE_RMS * max(update.shape[-2:]) ** 0.5
            self._apply(stack, update * (rate * factor), 1 - rate * weight_decay)

    @staticmethod
    def _stack(tensors: list[Tensor] | list[torch.nn.Parameter]) -> Tensor:
        return torch.cat([t.detach().reshape(-1, *t.shape[-2:]) for t in tensors])

    @staticmethod
    def _apply(stack: list[torch.nn.Parameter], update: Tensor, keep: float) -> None:
        counts = [p.numel() // (p.shape[-1] * p.shape[-2]) for p in stack]
        for parameter, change in zip(stack, torch.split(update, counts), strict=True):
            parameter.mul_(keep).sub_(change.reshape(parameter.shape))


class Optimizer:
    """Steps a whole network: matrices by Muon; embedding, head, router and norms by AdamW."""

    def __init__(self, network: Network, weight_decay: float) -> None:
        named = list(network.named_parameters())
        muon = [p for name, p in named if _is_muons(name, p)]
        self._network, self._weight_decay = network, weight_decay
        self._muon = Muon(muon)
        routers = [p for name, p in named if name.endswith(ROUTER)]
        tables = [p for name, p in named if p.dim() >= 2 and not _is_muons(name, p) and not name.endswith(ROUTER)]
        scalars = [p for _, p in named if p.dim() < 2]
        self._adam = torch.optim.AdamW(
            [
                {"params": tables, "weight_decay": weight_decay, "share": 1.0},
                {"params": routers, "weight_decay": weight_decay, "share": ROUTER_RATE},
                {"params": scalars, "weight_decay": 0.0, "share": 1.0},
            ],
            betas=ADAM_BETAS,
            eps=ADAM_EPS,
        )

    def step(self, rate: float) -> None:
        """Apply and clear the gradients at learning rate `rate`."""
        self._muon.step(rate, self._weight_decay)
        for group in self._adam.param_groups:
            group["lr"] = rate * group["share"]
        self._adam.step()
        self._network.zero_grad(set_to_none=True)


def _is_muons(name: str, parameter: Tensor) -> bool:
    is_table = "embed_tokens" in name or "lm_head" in name or name.endswith(ROUTER)
    return parameter.dim() >= 2 and not is_table
