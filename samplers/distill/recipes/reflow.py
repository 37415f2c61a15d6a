"""Reflow (Liu et al. 2022, "Flow Straight and Fast", arXiv:2209.03003): straighten the paths.

  L = | v(x_t, t) - (x_1 - x_0) |^2,   x_t = (1 - t) x_0 + t x_1,   (x_1, x_0) one path's two ends
Pairs of noise and the teacher's sample from it no longer cross, so that one Euler step goes far.
`times="bifocal"` is FlashAudio's choice for a flow that is nearly straight already (Liu et al.
2025, arXiv:2410.12266).
Differs from the authors' code: one round; with `one_step` the flow is then asked at t = 1 only,
which is their distillation.
"""

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from skipstep.samplers.distill.flow import as_rows
from skipstep.samplers.distill.protocol import Distiller, Moment, Need
from skipstep.samplers.distill.times import TimeLaw

__all__ = ["Reflow"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Reflow(Distiller):
    """Regress the straight line between the two ends of the teacher's path."""

    name: ClassVar[str] = "reflow"
    summary: ClassVar[str] = "Straight lines between the ends of the teacher's paths."
    paper: ClassVar[str] = "Flow Straight and Fast (2209.03003)"
    needs: ClassVar[frozenset[Need]] = frozenset({"path"})

    times: Annotated[TimeLaw, Field(description="where on the line the flow is asked")] = "uniform"
    one_step: Annotated[
        float, Field(ge=0, le=1, description="last part of training that asks at t = 1 only")
    ] = 0.0

    def loss(self, role: str, now: Moment) -> Float[Tensor, ""]:
        """Return the squared error at one random time per sample."""
        x_1, x_0 = now.path[:, 0], now.path[:, -1]
        t, weight = now.draw_times(self.times, len(x_1))
        if now.progress >= 1 - self.one_step:
            t, weight = torch.ones_like(t), torch.ones_like(t)
        t, weight = t.to(x_1), weight.to(x_1)
        x_t = torch.lerp(x_0, x_1, as_rows(t, x_1))
        v = now.networks["student"](x_t, t, now.batch.condition)
        error = (v - (x_1 - x_0)).square().flatten(1).mean(1)
        if self.times == "loss_aware":
            now.times.note(t.detach().cpu(), error.detach().cpu())
        return (weight * error).mean()
