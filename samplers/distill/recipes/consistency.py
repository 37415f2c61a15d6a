"""Consistency distillation, whole or in segments.

  f(x_t, t; s) = x_t + (s - t) v(x_t, t),   s = the segment's end below t
  L = d( f_student(x_t, t; s), f_average(x_r, r; s) ),   x_r = the teacher's Heun step from x_t
and f = x at r = s. One segment: f is the clean picture, and the student is a consistency model
(Song et al. 2023, arXiv:2303.01469; with guidance in the teacher LCM, Luo et al. 2023,
arXiv:2310.04378). Several: the student maps to each segment's end, as PCM (Wang et al. 2024,
arXiv:2405.18407) and TCD do; with `merging` their number falls from 8 to `segments` while it
trains (Hyper-SD, Ren et al. 2024, arXiv:2404.13686).
Differs from the authors' code: the flow's own skip and scale (c_skip = 1, c_out = s - t) instead of
LCM's, a running mean as the target, and no guidance embedding: the teacher's scale is folded in.
"""

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from skipstep.samplers.distill.couplings import Coupling, couple
from skipstep.samplers.distill.distances import pseudo_huber
from skipstep.samplers.distill.flow import as_rows
from skipstep.samplers.distill.protocol import Distiller, Moment, Need
from skipstep.samplers.distill.walk import taught_nodes

__all__ = ["Consistency", "Segmented"]

FIRST_SEGMENTS = 8


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Consistency(Distiller):
    """Make all states of a path agree on the clean picture."""

    name: ClassVar[str] = "consistency"
    summary: ClassVar[str] = "One map from every state to the clean picture (CD, LCM)."
    paper: ClassVar[str] = "Consistency Models (2303.01469)"
    needs: ClassVar[frozenset[Need]] = frozenset({"data"})
    gamma: ClassVar[float] = 1.0

    least: Annotated[int, Field(ge=2, description="teacher steps on the whole path, at first")] = 10
    most: Annotated[int, Field(ge=2, description="and at the end of training")] = 60
    coupling: Annotated[Coupling, Field(description="which noise goes with which picture")] = (
        "independent"
    )

    def loss(self, role: str, now: Moment) -> Float[Tensor, ""]:
        """Return the distance of the student's map to the average's from one teacher step on."""
        return segment_loss(now, 1, self._steps(now.progress), self.coupling)

    def _steps(self, progress: float) -> int:
        return round(self.least + (self.most - self.least) * progress)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Segmented(Distiller):
    """Make the states of each segment agree on its end."""

    name: ClassVar[str] = "segmented"
    summary: ClassVar[str] = "Consistency inside segments of the path (PCM, TCD, Hyper-SD)."
    paper: ClassVar[str] = "Phased Consistency Models (2405.18407)"
    needs: ClassVar[frozenset[Need]] = frozenset({"data"})

    segments: Annotated[int, Field(ge=1, description="steps the student takes in the end")] = 4
    merging: Annotated[bool, Field(description="begin with 8 segments, then halve")] = False
    per_segment: Annotated[int, Field(ge=1, description="teacher steps in a segment")] = 8
    coupling: Annotated[Coupling, Field(description="which noise goes with which picture")] = (
        "independent"
    )

    def segments_at(self, progress: float) -> int:
        """Return the number of segments at a share of training."""
        if not self.merging or self.segments >= FIRST_SEGMENTS:
            return self.segments
        stages = [n for n in (8, 4, 2, 1) if n > self.segments] + [self.segments]
        return stages[min(int(progress * len(stages)), len(stages) - 1)]

    def nodes(self, steps: int) -> tuple[float, ...]:
        """Return the segments' ends; raises ValueError for another number of steps."""
        return taught_nodes(steps, self.segments)

    def loss(self, role: str, now: Moment) -> Float[Tensor, ""]:
        """Return the distance of the two maps, to the end of the segment."""
        segments = self.segments_at(now.progress)
        return segment_loss(now, segments, segments * self.per_segment, self.coupling)


def segment_loss(now: Moment, segments: int, steps: int, coupling: Coupling) -> Tensor:
    """Return the consistency loss on a grid of `steps` teacher steps in `segments` segments."""
    steps = segments * -(-steps // segments)
    x_0, condition = now.data, now.batch.condition
    j = now.choose(len(x_0), steps) + 1
    per = steps // segments
    t, r, s = ((k / steps).to(x_0) for k in (j, j - 1, (j - 1) // per * per))
    x_t = torch.lerp(x_0, couple(coupling, x_0, now.noise_like(x_0)), as_rows(t, x_0))
    with torch.no_grad():
        x_r = heun_step(now, x_t, t, r)
        held = x_r + as_rows(s - r, x_r) * now.networks["average"](x_r, r, condition)
        target = torch.where(as_rows((r > s).to(x_r), x_r).bool(), held, x_r)
    mapped = x_t + as_rows(s - t, x_t) * now.networks["student"](x_t, t, condition)
    return pseudo_huber(mapped, target).mean()


def heun_step(now: Moment, x_t: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """Return the teacher's second-order step from t to r; to r = 0 of first order."""
    teacher, condition = now.networks["teacher"], now.batch.condition
    v = teacher(x_t, t, condition)
    x_r = x_t + as_rows(r - t, x_t) * v
    ahead = teacher(x_r, r.clamp(min=1e-3), condition)
    corrected = x_t + as_rows(r - t, x_t) * 0.5 * (v + ahead)
    return torch.where(as_rows((r > 0).to(x_t), x_t).bool(), corrected, x_r)
