"""Maps between two times: MeanFlow (Geng et al. 2025, arXiv:2505.13447) and shortcut models.

The student is the mean velocity u(x_t, t, s) between t and s: x_s = x_t - (t - s) u.
MeanFlow, from d/dt of (t - s) u = integral of v:
  L = | u - sg(v - (t - s)(v . grad_x u + du/dt)) |^2 / (sg|.|^2 + c)
v is the teacher's velocity, or x_1 - x_0 of the data with `from_data`. The derivative is one
forward-mode product.
Shortcut (Frans et al. 2024, arXiv:2410.12557): a step is two steps of half its length,
  L = | u(x, t, t) - (x_1 - x_0) |^2 + | u(x, t, t - d) - sg(u(x, t, t - d/2) + u(x', ...))/2 |^2
on a quarter of the batch, d = 1, 1/2, ... 1/32.
Differs from the authors' code: shortcut's network is told s, not d; its two halves come from the
running mean.
"""

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from skipstep.samplers.distill.couplings import Coupling, couple
from skipstep.samplers.distill.distances import adaptive
from skipstep.samplers.distill.flow import as_rows
from skipstep.samplers.distill.protocol import Distiller, Moment, Need

__all__ = ["MeanFlow", "Shortcut"]

HALVINGS = 6


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class MeanFlow(Distiller):
    """Learn the mean velocity from its differential identity."""

    name: ClassVar[str] = "meanflow"
    summary: ClassVar[str] = "Mean velocity between two times, by a forward-mode derivative."
    paper: ClassVar[str] = "Mean Flows for One-step Generative Modeling (2505.13447)"
    needs: ClassVar[frozenset[Need]] = frozenset({"data"})
    is_map: ClassVar[bool] = True

    from_data: Annotated[bool, Field(description="learn from data alone, without a teacher")] = (
        False
    )
    instant: Annotated[
        float, Field(ge=0, lt=1, description="share of the batch with s = t, the plain velocity")
    ] = 0.25
    coupling: Annotated[Coupling, Field(description="which noise goes with which picture")] = (
        "independent"
    )

    def loss(self, role: str, now: Moment) -> Float[Tensor, ""]:
        """Return the identity's squared error, each sample's divided by itself."""
        x_0, condition = now.data, now.batch.condition
        count = len(x_0)
        x_1 = couple(self.coupling, x_0, now.noise_like(x_0))
        both = torch.sigmoid(torch.randn(2, count, generator=now.generator) - 0.4)
        t, s = both.amax(0), both.amin(0)
        # Whole steps from pure noise are what is used: an eighth of the batch asks for them.
        t[: count // 8], s[: count // 16] = 1.0, 0.0
        s = torch.where(now.uniform(count) < self.instant, t, s)
        t, s = t.to(x_0), s.to(x_0)
        x_t = torch.lerp(x_0, x_1, as_rows(t, x_0))
        with torch.no_grad():
            v = x_1 - x_0 if self.from_data else now.networks["teacher"](x_t, t, condition)

        def u_of(x: Tensor, time: Tensor) -> Tensor:
            return now.networks["student"](x, time, condition, s)

        u, du = torch.func.jvp(u_of, (x_t, t), (v, torch.ones_like(t)))[:2]
        target = (v - as_rows(t - s, v) * du).detach()
        return adaptive((u - target).square().flatten(1).sum(1)).mean()


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Shortcut(Distiller):
    """Learn a step as two steps of half its length."""

    name: ClassVar[str] = "shortcut"
    summary: ClassVar[str] = "Mean velocity between two times, by halving steps."
    paper: ClassVar[str] = "One Step Diffusion via Shortcut Models (2410.12557)"
    needs: ClassVar[frozenset[Need]] = frozenset({"data"})
    is_map: ClassVar[bool] = True

    from_data: Annotated[bool, Field(description="learn from data alone, without a teacher")] = (
        False
    )
    coupling: Annotated[Coupling, Field(description="which noise goes with which picture")] = (
        "independent"
    )

    def loss(self, role: str, now: Moment) -> Float[Tensor, ""]:
        """Return the velocity's error on three quarters of the batch and halving's on the rest."""
        x_0 = now.data
        x_1 = couple(self.coupling, x_0, now.noise_like(x_0))
        quarter = len(x_0) // 4
        t = now.uniform(len(x_0) - quarter).to(x_0)
        plain = {name: value[quarter:] for name, value in now.batch.condition.items()}
        x_t = torch.lerp(x_0[quarter:], x_1[quarter:], as_rows(t, x_0[quarter:]))
        with torch.no_grad():
            v = (x_1 - x_0)[quarter:]
            if not self.from_data:
                v = now.networks["teacher"](x_t, t, plain)
        error = (now.networks["student"](x_t, t, plain, t) - v).square().mean()
        some = {name: value[:quarter] for name, value in now.batch.condition.items()}
        return error + self._halving(now, x_0[:quarter], x_1[:quarter], some)

    def _halving(
        self, now: Moment, x_0: Tensor, x_1: Tensor, condition: dict[str, Tensor]
    ) -> Tensor:
        count = len(x_0)
        d = 2.0 ** -now.choose(count, HALVINGS)
        t = (((now.uniform(count) / d).floor() + 1) * d).to(x_0)
        d = d.to(x_0)
        x_t = torch.lerp(x_0, x_1, as_rows(t, x_0))
        average, middle = now.networks["average"], t - d / 2
        with torch.no_grad():
            first = average(x_t, t, condition, middle)
            second = average(x_t - as_rows(d / 2, x_t) * first, middle, condition, t - d)
        u = now.networks["student"](x_t, t, condition, t - d)
        return (u - (first + second) / 2).square().mean()
