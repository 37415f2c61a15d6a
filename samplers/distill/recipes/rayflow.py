"""RayFlow's instance target (Shao et al. 2025, "RayFlow", arXiv:2503.07699).

  eps_mu = E_t[ teacher's predicted noise along the sample's path ]        the unified expectation
  x_t = (1 - t) x_0 + t eps_mu,   L = | v(x_t, t) - (eps_mu - x_0) |^2
Each sample has its own end point, the mean of all noise its teacher sees on the way; towards it the
path is straight, so few steps follow it. At work the path begins at the noise itself: `mix` of the
batch does so in training too.
Differs from the paper, whose text leaves the scale of the remaining noise open: none at the end
point, and in the flow's coordinates. Its time sampler is `times="loss_aware"` (times.py).
"""

from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from skipstep.samplers.distill.flow import as_rows
from skipstep.samplers.distill.protocol import Distiller, Moment, Need
from skipstep.samplers.distill.times import TimeLaw

__all__ = ["RayFlow", "unified_expectation"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class RayFlow(Distiller):
    """Regress the straight line between a sample and its own mean noise."""

    name: ClassVar[str] = "rayflow"
    summary: ClassVar[str] = "Straight lines to each sample's own mean noise."
    paper: ClassVar[str] = "RayFlow (2503.07699)"
    needs: ClassVar[frozenset[Need]] = frozenset({"path"})

    times: Annotated[TimeLaw, Field(description="where on the line the flow is asked")] = (
        "loss_aware"
    )
    mix: Annotated[
        float, Field(ge=0, le=1, description="share of the batch whose line ends at the noise")
    ] = 0.5

    def loss(self, role: str, now: Moment) -> Float[Tensor, ""]:
        """Return the squared error at one random time per sample."""
        path, noise, x_0 = now.path, now.path[:, 0], now.path[:, -1]
        target = unified_expectation(path, now.batch.times)
        at_noise = as_rows((now.uniform(len(x_0)) < self.mix).to(x_0), x_0).bool()
        end = torch.where(at_noise, noise, target)
        t, weight = now.draw_times(self.times, len(x_0))
        t, weight = t.to(x_0), weight.to(x_0)
        x_t = torch.lerp(x_0, end, as_rows(t, x_0))
        v = now.networks["student"](x_t, t, now.batch.condition)
        error = (v - (end - x_0)).square().flatten(1).mean(1)
        if self.times == "loss_aware":
            now.times.note(t.detach().cpu(), error.detach().cpu())
        return (weight * error).mean()


def unified_expectation(
    path: Float[Tensor, "b k *size"], times: tuple[float, ...]
) -> Float[Tensor, " b *size"]:
    """Return the mean of the noise predicted on the path's stretches, eps = x_t + (1 - t) v."""
    seen = [
        path[:, i] + (1 - t) * (path[:, i] - path[:, i + 1]) / (t - s)
        for i, (t, s) in enumerate(pairwise(times))
    ]
    return torch.stack(seen).mean(0)
