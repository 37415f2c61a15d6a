"""Inductive moment matching (Zhou, Ermon & Song 2025, arXiv:2503.07565): one stage, from data.

  f(x_t, t, s) = x_t - (t - s) u(x_t, t, s)
  L = w(t) [ E k(y_t, y_t') + E k(y_r, y_r') - 2 E k(y_t, y_r) ],  y_t = f(x_t, t, s),
  y_r = sg f(x_r, r, s),  r a little below t, x_t and x_r on one line of data and noise,
  k(a, b) = exp(-|a - b| / (D (t - s)))          the Laplace kernel, over groups of M particles
w = sigmoid(b - lambda) / 2 (-dlambda/dt) alpha / (alpha^2 + sigma^2), lambda = 2 log(alpha/sigma).
Differs from the authors' code: Euler-flow head only, a = 1, b = 5, T = 0.994 as they use.
"""

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from skipstep.samplers.distill.flow import as_rows
from skipstep.samplers.distill.protocol import Distiller, Moment, Need

__all__ = ["IMM"]

LAST, HIGHEST_RATIO = 0.994, 160.0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class IMM(Distiller):
    """Match the student's samples from t with its own from just below t, as distributions."""

    name: ClassVar[str] = "imm"
    summary: ClassVar[str] = "Samples from t match samples from just below t, in all moments."
    paper: ClassVar[str] = "Inductive Moment Matching (2503.07565)"
    needs: ClassVar[frozenset[Need]] = frozenset({"data"})
    is_map: ClassVar[bool] = True

    particles: Annotated[int, Field(ge=2, description="samples that share one pair of times")] = 8
    halvings: Annotated[
        int, Field(ge=1, le=16, description="r is eta_max / 2^k below t in eta")
    ] = 10

    def nodes(self, steps: int) -> tuple[float, ...]:
        """Return even times from T = 0.994."""
        return tuple(LAST * (1 - i / steps) for i in range(steps + 1))

    def loss(self, role: str, now: Moment) -> Float[Tensor, ""]:
        """Return the weighted maximum mean discrepancy of the groups."""
        groups = len(now.data) // self.particles
        count = groups * self.particles
        x_0 = now.data[:count]
        x_1 = now.noise_like(x_0)
        condition = {name: value[:count] for name, value in now.batch.condition.items()}
        t = now.uniform(groups) * (LAST - 0.004) + 0.004
        s = now.uniform(groups) * t
        eta = t / (1 - t) - HIGHEST_RATIO / 2**self.halvings
        r = torch.where(eta > 0, eta / (1 + eta), s).maximum(s)
        rows = [each.repeat_interleave(self.particles).to(x_0) for each in (t, s, r)]
        y_t = self._map(now, "student", x_0, x_1, rows[0], rows[1], condition)
        with torch.no_grad():
            y_r = self._map(now, "student", x_0, x_1, rows[2], rows[1], condition)
        y_t, y_r = (y.reshape(groups, self.particles, -1) for y in (y_t, y_r))
        sharp = 1 / (t - s).clamp(min=1e-3).to(x_0)
        apart = kernel(y_t, y_t, sharp) + kernel(y_r, y_r, sharp) - 2 * kernel(y_t, y_r, sharp)
        loss: Tensor = (weight(t).to(x_0) * apart).mean()
        return loss

    def _map(
        self,
        now: Moment,
        role: str,
        x_0: Tensor,
        x_1: Tensor,
        t: Tensor,
        s: Tensor,
        condition: dict[str, Tensor],
    ) -> Tensor:
        x_t = torch.lerp(x_0, x_1, as_rows(t, x_0))
        return x_t - as_rows(t - s, x_t) * now.networks[role](x_t, t, condition, s)


def kernel(
    a: Float[Tensor, "g m d"], b: Float[Tensor, "g m d"], sharp: Float[Tensor, " g"]
) -> Float[Tensor, " g"]:
    """Return the mean Laplace kernel of all pairs of a group."""
    far = ((a[:, :, None] - b[:, None]).square().sum(-1) + 1e-8).sqrt() / a.shape[-1]
    return torch.exp(-sharp[:, None, None] * far).mean((1, 2))


def weight(t: Float[Tensor, " g"]) -> Float[Tensor, " g"]:
    """Return w(t); -dlambda/dt = 2 / (t (1 - t)) on the straight flow."""
    level = 2 * ((1 - t) / t).log()
    return torch.sigmoid(5 - level) / (t * (1 - t)) * (1 - t) / (t * t + (1 - t) ** 2)
