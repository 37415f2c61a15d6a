"""Constant acceleration flow (Park et al. 2024, "Constant Acceleration Flow", arXiv:2411.00322).

In the paper's time u from noise (0) to data (1), with x_1 the data and v_0 the first velocity:
  x(u) = (1 - u^2) x_0 + u^2 x_1 + v_0 (u - u^2),   a = 2 (x_1 - x_0) - 2 v_0 constant
  L_v = | v(x_u, u) - h (x_1 - x_0) |^2             at v_0 = h (x_1 - x_0), h = 1.5
  L_a = | a(x_u, u, v_0) - (2 (x_1 - x_0) - 2 v_0) |^2   at v_0 = sg v(x_0, 0)
  x(u + du) = x + v_0 du + (u + du / 2) a du
Trained on the ends of the teacher's paths. An acceleration lets two paths cross that a velocity
must bend around; a walk of N steps costs N + 1 evaluations.
Differs from the authors' code: both networks learn in one run, in turn; squared errors instead of
LPIPS and pseudo-Huber; no GAN stage. The acceleration network needs v_0 beside its input, which no
diffusers denoiser takes: for own modules only.
"""

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from skipstep.samplers.distill.flow import Condition, Velocity, as_rows
from skipstep.samplers.distill.protocol import Distiller, Moment, Need

__all__ = ["CAF", "walk_with_acceleration"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class CAF(Distiller):
    """Learn a first velocity (role "velocity") and the acceleration that follows (student)."""

    name: ClassVar[str] = "caf"
    summary: ClassVar[str] = "A first velocity and a constant acceleration; paths may cross."
    paper: ClassVar[str] = "Constant Acceleration Flow (2411.00322)"
    roles: ClassVar[tuple[str, ...]] = ("student", "velocity")
    needs: ClassVar[frozenset[Need]] = frozenset({"path"})

    h: Annotated[float, Field(gt=0, description="first velocity in units of x_1 - x_0")] = 1.5

    def role_at(self, iteration: int) -> str:
        """Return the two networks in turn."""
        return "velocity" if iteration % 2 == 0 else "student"

    def loss(self, role: str, now: Moment) -> Float[Tensor, ""]:
        """Return L_v or L_a."""
        x_0, x_1, condition = now.path[:, 0], now.path[:, -1], now.batch.condition
        u = now.uniform(len(x_0)).to(x_0)
        if role == "velocity":
            v_0 = self.h * (x_1 - x_0)
            at_u = between(x_0, x_1, v_0, u)
            beside = {**condition, "beside": torch.zeros_like(x_0)}
            return (now.networks["velocity"](at_u, 1 - u, beside) - v_0).square().mean()
        v_0 = first_velocity(now.networks["velocity"], x_0, condition)
        at_u = between(x_0, x_1, v_0, u)
        a = now.networks["student"](at_u, 1 - u, {**condition, "beside": v_0})
        return (a - (2 * (x_1 - x_0) - 2 * v_0)).square().mean()


def between(x_0: Tensor, x_1: Tensor, v_0: Tensor, u: Tensor) -> Tensor:
    """Return x(u)."""
    u = as_rows(u, x_0)
    return (1 - u * u) * x_0 + u * u * x_1 + v_0 * (u - u * u)


@torch.no_grad()
def first_velocity(velocity: Velocity, noise: Tensor, condition: Condition) -> Tensor:
    """Return v_0 of noise."""
    beside = {**condition, "beside": torch.zeros_like(noise)}
    return velocity(noise, torch.ones(len(noise)).to(noise), beside)


@torch.no_grad()
def walk_with_acceleration(
    velocity: Velocity,
    acceleration: Velocity,
    noise: Float[Tensor, " b *size"],
    steps: int,
    condition: Condition,
) -> Float[Tensor, " b *size"]:
    """Walk from noise to data in `steps` steps and `steps` + 1 evaluations."""
    v_0, x = first_velocity(velocity, noise, condition), noise
    for i in range(steps):
        u = torch.full((len(x),), i / steps).to(x)
        a = acceleration(x, 1 - u, {**condition, "beside": v_0})
        x = x + v_0 / steps + (i / steps + 0.5 / steps) * a / steps
    return x
