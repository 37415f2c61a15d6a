"""Walk from noise to data in few steps: what a student does at work, and inside some recipes.

  s' = (1 - gamma) s,   x_s' = x_t + (s' - t) v
  x_s = (1 - s)/(1 - s') x_s' + sqrt(s^2 - ((1 - s)/(1 - s') s')^2) z,   z ~ N(0, I)
gamma = 0 is the deterministic Euler step; gamma = 1 draws all noise anew, as consistency models do
(Song et al. 2023, arXiv:2303.01469); between them it is the strategic sampling of TCD (Zheng et al.
2024, arXiv:2402.19159).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.samplers.distill.flow import Condition, Velocity, as_rows

__all__ = ["renoise", "shifted_nodes", "taught_nodes", "walk"]


def shifted_nodes(steps: int, shift: float = 1.0) -> tuple[float, ...]:
    """Return steps + 1 times from 1 to 0; shift > 1 puts more of them near the noise.

    >>> shifted_nodes(4)
    (1.0, 0.75, 0.5, 0.25, 0.0)
    """
    even = [1 - i / steps for i in range(steps + 1)]
    return tuple(shift * u / (1 + (shift - 1) * u) for u in even)


def taught_nodes(steps: int, taught: int, shift: float = 1.0) -> tuple[float, ...]:
    """Return the nodes of a student that knows one number of steps; raises ValueError for another.

    >>> taught_nodes(2, taught=2)
    (1.0, 0.5, 0.0)
    """
    if steps != taught:
        raise ValueError(f"steps={steps}: this student takes {taught} steps")
    return shifted_nodes(steps, shift)


def renoise(
    x: Float[Tensor, " b *size"],
    s_before: Float[Tensor, " b"],
    s: Float[Tensor, " b"],
    z: Float[Tensor, " b *size"],
) -> Float[Tensor, " b *size"]:
    """Bring x from level s_before up to s with fresh noise z, keeping its distribution."""
    kept = (1 - s) / (1 - s_before).clamp(min=1e-6)
    added = (s * s - (kept * s_before) ** 2).clamp(min=0).sqrt()
    return as_rows(kept, x) * x + as_rows(added, x) * z


def walk(
    flow: Velocity,
    x: Float[Tensor, " b *size"],
    nodes: Sequence[float],
    condition: Condition,
    *,
    gamma: float = 0.0,
    is_map: bool = False,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " b *size"]:
    """Step through the nodes, from nodes[0] to nodes[-1].

    With `is_map` the flow is told where each step ends.
    """
    for t, s in pairwise(nodes):
        now = torch.full((len(x),), t, dtype=x.dtype, device=x.device)
        lower = (1 - gamma) * s
        v = flow(x, now, condition, torch.full_like(now, lower) if is_map else None)
        x = x + (lower - t) * v
        if gamma > 0 and s > 0:
            z = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            x = renoise(x, torch.full_like(now, lower), torch.full_like(now, s), z)
    return x
