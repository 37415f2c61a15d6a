"""Blockwise flows (Park et al. 2025, "Blockwise Flow Matching", arXiv:2510.21167): a network of its
own for every stretch of time.

  v(x_t, t) = v_k(x_t, t),   t in (e_(k+1), e_k],   1 = e_0 > e_1 > ... > e_K = 0
A step costs one of the networks, so each may be small and know its own noise levels alone; together
they take K times the memory, and at equal size are no better on the plane (plane_suite.py). Any
recipe trains it, because to a recipe it is a module like others: every sample's gradient goes to
the network of its time.
Differs from the authors' code: no features shared between the networks, and no residual network
that would predict them; copies of one network to start from, so that distillation has a teacher.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Blockwise"]


class Blockwise(nn.Module):
    """Ask the network of each sample's stretch of time.

    Args:
        module: what the networks are copies of; called as module(x, t, ...), rows apart.
        edges: K + 1 times from 1 to 0.

    Raises ValueError for edges that do not fall from 1 to 0.
    """

    def __init__(self, module: nn.Module, edges: Sequence[float]) -> None:
        super().__init__()
        if edges[0] != 1 or edges[-1] != 0 or list(edges) != sorted(set(edges), reverse=True):
            raise ValueError(f"edges={tuple(edges)} is not allowed: times fall from 1 to 0")
        self.edges = tuple(edges)
        self.parts = nn.ModuleList(copy.deepcopy(module) for _ in edges[1:])

    def forward(
        self, x: Float[Tensor, " b *size"], t: Float[Tensor, " b"], *more: Any, **named: Any
    ) -> Float[Tensor, " b *size"]:
        """Return every sample's own network's answer."""
        inner = torch.tensor(self.edges[-2:0:-1], dtype=t.dtype, device=t.device)
        block = len(self.parts) - 1 - torch.bucketize(t, inner)
        v = torch.zeros_like(x)
        for k, part in enumerate(self.parts):
            rows = (block == k).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            given = [_rows_of(each, rows, len(x)) for each in more]
            also = {name: _rows_of(each, rows, len(x)) for name, each in named.items()}
            v = v.index_copy(0, rows, part(x[rows], t[rows], *given, **also).to(v.dtype))
        return v


def _rows_of(value: Any, rows: Tensor, count: int) -> Any:
    is_batch = isinstance(value, Tensor) and value.ndim > 0 and len(value) == count
    return value[rows] if is_batch else value
