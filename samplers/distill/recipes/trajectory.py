"""Trajectory distillation: one step of the student covers a stretch of the teacher's own path.

  L = | v_student(x_(t_i), t_i) - (x_(t_i) - x_(t_(i+1))) / (t_i - t_(i+1)) |^2
With one stretch it is knowledge distillation of the whole sampler (Luhman & Luhman 2021,
arXiv:2101.02388), with several the last stage of progressive distillation (Salimans & Ho 2022,
arXiv:2202.00512). The teacher's path was walked with guidance, so the student needs none. Cheapest
of all recipes when paths are kept and reused, and it needs no pictures; it averages where the
path from a state is hard to tell, so it blurs at one step.
Differs from progressive distillation: the teacher is always the original, never a student; with
`on_student_states` a share of the stretches begins at the student's own state and ends at the
teacher's, which teaches it to return to the path.
"""

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from skipstep.samplers.distill.flow import as_rows
from skipstep.samplers.distill.protocol import Distiller, Moment, Need
from skipstep.samplers.distill.walk import taught_nodes

__all__ = ["Trajectory"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Trajectory(Distiller):
    """Regress the mean velocity of each stretch of the teacher's path."""

    name: ClassVar[str] = "trajectory"
    summary: ClassVar[str] = "One student step for each stretch of the teacher's guided path."
    paper: ClassVar[str] = "Knowledge Distillation in Iterative Generative Models (2101.02388)"
    needs: ClassVar[frozenset[Need]] = frozenset({"path"})

    at: Annotated[
        tuple[float, ...],
        Field(min_length=2, description="times of the stretches from 1 to 0, on the path's own"),
    ] = (1.0, 0.75, 0.5, 0.25, 0.0)
    on_student_states: Annotated[
        float, Field(ge=0, le=1, description="share of stretches begun at the student's own state")
    ] = 0.0

    def __post_init__(self) -> None:
        if self.at[0] != 1 or self.at[-1] != 0 or list(self.at) != sorted(set(self.at))[::-1]:
            raise ValueError(
                f"at={self.at} is not allowed: times fall from 1 to 0, as in (1, .5, 0)"
            )

    def nodes(self, steps: int) -> tuple[float, ...]:
        """Return `at`; the student knows no other number of steps."""
        taught_nodes(steps, len(self.at) - 1)
        return self.at

    def loss(self, role: str, now: Moment) -> Float[Tensor, ""]:
        """Return the squared error of one random stretch per sample."""
        batch, condition = now.batch, now.batch.condition
        places = torch.tensor([_place(batch.times, t) for t in self.at])
        count, steps = len(batch.noise), len(self.at) - 1
        begin = now.choose(count, steps)
        rows = torch.arange(count)
        x_t, x_s = now.path[rows, places[begin]], now.path[rows, places[begin + 1]]
        at = torch.tensor(self.at)
        t, s = at[begin].to(x_t), at[begin + 1].to(x_t)
        if self.on_student_states > 0:
            x_t = self._mixed_states(now, begin, x_t)
        v = now.networks["student"](x_t, t, condition)
        target = (x_t - x_s) / as_rows(t - s, x_t)
        loss: Tensor = (v - target).square().mean()
        return loss

    @torch.no_grad()
    def _mixed_states(self, now: Moment, begin: Tensor, x_t: Tensor) -> Tensor:
        """Return the student's own states for a share of the samples."""
        own = (now.uniform(len(x_t)) < self.on_student_states) & (begin > 0)
        x = now.path[:, 0]
        for i in range(int(begin[own].max()) if own.any() else 0):
            rows = (own & (begin > i)).nonzero()[:, 0]
            condition = {name: value[rows] for name, value in now.batch.condition.items()}
            t = torch.full((len(rows),), self.at[i]).to(x)
            v = now.networks["average"](x[rows], t, condition)
            x = x.index_copy(0, rows, x[rows] + (self.at[i + 1] - self.at[i]) * v)
        return torch.where(as_rows(own.to(x), x_t).bool(), x, x_t)


def _place(times: tuple[float, ...], wanted: float) -> int:
    """Return where `wanted` stands in a path's times."""
    place = min(range(len(times)), key=lambda i: abs(times[i] - wanted))
    if abs(times[place] - wanted) > 2e-3:
        raise ValueError(f"at={wanted}: the paths were kept at {times}; choose among those")
    return place
