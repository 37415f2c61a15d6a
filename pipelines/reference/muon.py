"""Muon (Jordan et al. 2024), scaled to AdamW's update size (Liu et al. 2025, arXiv:2502.16982).

  M_t = mu M_(t-1) + (1 - mu) G_t,    N_t = mu M_t + (1 - mu) G_t        (Nesterov)
  O_t = NewtonSchulz(N_t),  five steps of  X <- a X + (b X X' + c (X X')^2) X
  W_t = (1 - lr lambda) W_(t-1) - lr 0.2 sqrt(max(m, n)) O_t

A convolution's kernel [out, in, h, w] is the matrix [out, in h w].
Differs from `torch.optim.Muon` in where the time goes: matrices of one shape are orthogonalised
together, in the precision of the weights (torch's always uses bfloat16, which a CPU without
bfloat16 units emulates at a tenth of the speed), and processes that share a step share this work.
"""

import math
from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from skipstep.pipelines.reference.processes import process_count, rank

__all__ = ["Muon", "orthogonalise"]

# Jordan et al.: the quintic that lifts small singular values fastest; it ends near 1, not at it.
A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 5


def orthogonalise(matrices: Float[Tensor, "k m n"]) -> Float[Tensor, "k m n"]:
    """Return the matrices with their singular values moved to about 1 (0.7 to 1.2)."""
    x = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.mT if matrices.shape[1] > matrices.shape[2] else x


class Muon(torch.optim.Optimizer):
    """Optimise matrices and kernels; `lr` and `weight_decay` mean what they mean for AdamW."""

    def __init__(
        self,
        matrices: list[Tensor],
        lr: float,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; every process must call it with equal gradients."""
        if closure is not None:
            raise ValueError("Muon takes no closure: compute the gradients first, then call step()")
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[tuple(matrix.flatten(1).shape)].append(matrix)
            updates = [self._directions(matrices, group) for matrices in by_shape.values()]
            _sum_over_processes(updates)
            for matrices, update in zip(by_shape.values(), updates, strict=True):
                rate = group["lr"] * 0.2 * math.sqrt(max(update.shape[1:]))
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                shaped = [one.view_as(matrix) for one, matrix in zip(update, matrices, strict=True)]
                torch._foreach_add_(matrices, shaped, alpha=-rate)

    def _directions(self, matrices: list[Tensor], group: dict[str, Any]) -> Tensor:
        """Return this process's part of O_t for matrices of one shape, zero elsewhere."""
        mu = group["momentum"]
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        for matrix in matrices:
            if "momentum" not in self.state[matrix]:
                self.state[matrix]["momentum"] = torch.zeros_like(matrix)
        momenta = [self.state[matrix]["momentum"] for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - mu)
        mine = slice(rank(), None, process_count())
        update = matrices[0].new_zeros(len(matrices), *matrices[0].flatten(1).shape)
        if momenta[mine]:
            ahead = torch.stack([one.flatten(1) for one in momenta[mine]]).mul_(mu)
            now = torch.stack([one.flatten(1) for one in gradients[mine]])
            ahead.add_(now, alpha=1 - mu)
            update[mine] = orthogonalise(ahead.to(self.precision)).float()
        return update


def _sum_over_processes(updates: list[Tensor]) -> None:
    if process_count() > 1:
        for update in updates:
            dist.all_reduce(update)
