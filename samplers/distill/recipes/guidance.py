"""Guidance distillation (Meng et al. 2022, arXiv:2210.03142): one call instead of two.

  L = | v_student(x_t, t, c) - [v(x_t, t, empty) + w (v(x_t, t, c) - v(x_t, t, empty))] |^2
The student is as slow in steps as its teacher and twice as fast in each. x_t comes from noised
data, which may be the teacher's own samples.
Differs from the authors' first stage: one scale w, the teacher's, is folded in; the student is not
told w.
"""

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from skipstep.samplers.distill.couplings import Coupling, couple
from skipstep.samplers.distill.flow import as_rows
from skipstep.samplers.distill.protocol import Distiller, Moment, Need
from skipstep.samplers.distill.times import TimeLaw

__all__ = ["Guidance"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Guidance(Distiller):
    """Regress the guided teacher's velocity."""

    name: ClassVar[str] = "guidance"
    summary: ClassVar[str] = "The guided teacher's velocity in one call; steps as before."
    paper: ClassVar[str] = "On Distillation of Guided Diffusion Models (2210.03142)"
    needs: ClassVar[frozenset[Need]] = frozenset({"data"})

    times: Annotated[TimeLaw, Field(description="at which noise levels")] = "uniform"
    coupling: Annotated[Coupling, Field(description="which noise goes with which picture")] = (
        "independent"
    )

    def loss(self, role: str, now: Moment) -> Float[Tensor, ""]:
        """Return the squared error to the guided teacher at one random level per sample."""
        x_0 = now.data
        t, weight = now.draw_times(self.times, len(x_0))
        t, weight = t.to(x_0), weight.to(x_0)
        x_t = torch.lerp(x_0, couple(self.coupling, x_0, now.noise_like(x_0)), as_rows(t, x_0))
        with torch.no_grad():
            target = now.networks["teacher"](x_t, t, now.batch.condition)
        v = now.networks["student"](x_t, t, now.batch.condition)
        error = (v - target).square().flatten(1).mean(1)
        if self.times == "loss_aware":
            now.times.note(t.detach().cpu(), error.detach().cpu())
        return (weight * error).mean()
