"""Physics-based flow matching (Baldan et al. 2025, PBFM, arXiv:2506.08604): a flow whose samples
satisfy an equation R(x) = 0.

  L_flow = | v(x_t, t) - (x_1 - x_0) |^2,   L_R = (1 - t) |R(y)|,   y = n Euler steps from x_t
The two gradients are joined without conflict (Liu et al. 2024, ConFIG, arXiv:2408.11104):
  g = (g_f' u + g_R' u) u,   u = unit(unit(orth(g_f, g_R)) + unit(orth(g_R, g_f)))
with orth(a, b) what of a is orthogonal to b: g has equal cosine to both, and neither loss rises.
n grows from 1 to `unroll` over training.
Differs from the authors' code: time runs from noise (1) to data (0) here.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from skipstep.samplers.distill.flow import as_rows
from skipstep.samplers.distill.protocol import Distiller, Moment, Need
from skipstep.samplers.distill.walk import shifted_nodes

__all__ = ["Residual", "conflict_free"]


@dataclass(
    frozen=True, kw_only=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True)
)
class Residual(Distiller):
    """Flow matching beside an equation that samples must satisfy."""

    name: ClassVar[str] = "residual"
    summary: ClassVar[str] = "Samples that satisfy an equation, by gradients without conflict."
    paper: ClassVar[str] = "Flow Matching Meets PDEs (2506.08604)"
    needs: ClassVar[frozenset[Need]] = frozenset({"data"})

    residual: Annotated[
        Callable[[Tensor], Tensor], Field(description="R: samples to residuals, one row each")
    ]
    unroll: Annotated[int, Field(ge=1, le=8, description="Euler steps to x_0, at the end")] = 4

    def loss(self, role: str, now: Moment) -> Float[Tensor, ""]:
        """Return a scalar whose gradient is the joined one, valued at the sum of both losses."""
        x_0 = now.data
        t = now.uniform(len(x_0)).to(x_0)
        x_1 = now.noise_like(x_0)
        x_t = torch.lerp(x_0, x_1, as_rows(t, x_0))
        student, condition = now.networks["student"], now.batch.condition
        v = student(x_t, t, condition)
        flow = (v - (x_1 - x_0)).square().mean()
        steps = 1 + int(now.progress * (self.unroll - 1) + 0.5)
        nodes, x = shifted_nodes(steps), x_t
        for i in range(steps):
            step = as_rows(t * (nodes[i + 1] - nodes[i]), x)
            x = x + step * (v if i == 0 else student(x, t * nodes[i], condition))
        rest = self.residual(x).flatten(1).abs().mean(1)
        return _with_gradient(flow, ((1 - t) * rest).mean())


def _parameters_of(loss: Tensor) -> list[Tensor]:
    """Return the leaves that a loss depends on."""
    found: dict[int, Tensor] = {}
    waiting: list[Any] = [loss.grad_fn]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        waiting += [each for each, _ in node.next_functions]
    return list(found.values())


def _with_gradient(first: Tensor, second: Tensor) -> Tensor:
    """Return the sum of both losses, with their conflict-free gradient."""
    parameters = _parameters_of(first)
    g_1, g_2 = (
        torch.autograd.grad(each, parameters, retain_graph=True, allow_unused=True)
        for each in (first, second)
    )
    joined = conflict_free(_flat(g_1, parameters), _flat(g_2, parameters))
    along = (torch.cat([p.flatten() for p in parameters]) * joined).sum()
    joint: Tensor = along - along.detach() + (first + second).detach()
    return joint


def _flat(gradients: Sequence[Tensor | None], parameters: list[Tensor]) -> Tensor:
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def conflict_free(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return ConFIG's joined gradient of two.

    >>> conflict_free(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).round(decimals=3)
    tensor([1., 1.])
    """
    if a.norm() == 0 or b.norm() == 0:
        return a + b
    direction = _unit(_unit(_orthogonal(a, b)) + _unit(_orthogonal(b, a)))
    joined: Tensor = (a @ direction + b @ direction) * direction
    return joined


def _orthogonal(a: Tensor, b: Tensor) -> Tensor:
    apart: Tensor = a - (a @ b) / (b @ b) * b
    return apart


def _unit(a: Tensor) -> Tensor:
    unit: Tensor = a / a.norm().clamp(min=1e-12)
    return unit
