"""Backward distillation with shifted reconstruction (Kohler et al. 2024, "Imagine Flash",
arXiv:2405.05224).

  x_t = the student's own walk from noise to node t (no gradient),   x_0 = x_t - t v(x_t, t)
  t' = gamma(t) = t_min + t^p (t_max - t_min),   x_t' = (1 - t') x_0 + t' eps
  L = | x_0 - sg(teacher's x_0 from x_t') |^2
No data: the student is taught on the states it meets, so nothing leaks from forward noising. The
shift lets the teacher judge structure where noise is high and detail where it is low.
Differs from the paper: gamma is not published and is a power law here; no adversarial loss; the
teacher walks `teacher_steps` Euler steps from t'.
"""

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from skipstep.samplers.distill.flow import as_rows
from skipstep.samplers.distill.protocol import Distiller, Moment
from skipstep.samplers.distill.walk import shifted_nodes, taught_nodes, walk

__all__ = ["Backward"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Backward(Distiller):
    """Let the teacher repair the student's own estimates, re-noised by a shifted amount."""

    name: ClassVar[str] = "backward"
    summary: ClassVar[str] = "The teacher repairs the student's own estimates (Imagine Flash)."
    paper: ClassVar[str] = "Imagine Flash (2405.05224)"

    steps: Annotated[int, Field(ge=1, description="steps the student takes")] = 3
    power: Annotated[float, Field(gt=0, description="p of the shift gamma(t)")] = 1.0
    t_min: Annotated[float, Field(gt=0, lt=1, description="shifted level at t = 0")] = 0.1
    t_max: Annotated[float, Field(gt=0, lt=1, description="shifted level at t = 1")] = 0.95
    teacher_steps: Annotated[int, Field(ge=1, description="teacher steps from there to 0")] = 3

    def __post_init__(self) -> None:
        if self.t_min >= self.t_max:
            raise ValueError(f"t_min={self.t_min} is not below t_max={self.t_max}")

    def nodes(self, steps: int) -> tuple[float, ...]:
        """Return the nodes the student was trained on; raises ValueError for another number."""
        return taught_nodes(steps, self.steps)

    def shifted(self, t: float) -> float:
        """Return gamma(t)."""
        return float(self.t_min + t**self.power * (self.t_max - self.t_min))

    def loss(self, role: str, now: Moment) -> Float[Tensor, ""]:
        """Return the squared error to what the teacher makes of the student's estimate."""
        nodes, condition, student = self.nodes(self.steps), now.batch.condition, "student"
        k = int(now.choose(1, self.steps))
        with torch.no_grad():
            x_t = walk(now.networks[student], now.batch.noise, nodes[: k + 1], condition)
        t = torch.full((len(x_t),), nodes[k]).to(x_t)
        x_0 = x_t - as_rows(t, x_t) * now.networks[student](x_t, t, condition)
        with torch.no_grad():
            level = self.shifted(nodes[k])
            again = torch.lerp(x_0, now.noise_like(x_0), level)
            down = tuple(level * node for node in shifted_nodes(self.teacher_steps))
            target = walk(now.networks["teacher"], again, down, condition)
        loss: Tensor = (x_0 - target).square().mean()
        return loss
