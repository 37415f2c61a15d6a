"""Fixed-step unroll (the idea of PeriodWave-Turbo, Lee et al. 2024, arXiv:2408.08019): train the
sampler that will run.

  x = walk(student, x_1, nodes)  with gradients through all steps,   L = d(x, x_0)
x_0 is the end of the teacher's path from the same noise. Errors of one step are made good by the
next, which stretch-by-stretch regression cannot learn. It costs as many passes as steps.
Differs from the paper: a paired distance instead of mel and adversarial losses.
"""

from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from skipstep.samplers.distill.distances import pseudo_huber
from skipstep.samplers.distill.protocol import Distiller, Moment, Need
from skipstep.samplers.distill.walk import taught_nodes, walk

__all__ = ["Unroll"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Unroll(Distiller):
    """Bring the end of the student's whole walk to the end of the teacher's."""

    name: ClassVar[str] = "unroll"
    summary: ClassVar[str] = "Gradients through the student's whole walk to the teacher's end."
    paper: ClassVar[str] = "Accelerating High-Fidelity Waveform Generation (2408.08019)"
    needs: ClassVar[frozenset[Need]] = frozenset({"path"})

    steps: Annotated[int, Field(ge=1, le=8, description="steps the student takes")] = 2
    distance: Annotated[
        Literal["squared", "pseudo_huber"], Field(description="distance of the two ends")
    ] = "squared"

    def nodes(self, steps: int) -> tuple[float, ...]:
        """Return the nodes the student was trained on; raises ValueError for another number."""
        return taught_nodes(steps, self.steps)

    def loss(self, role: str, now: Moment) -> Float[Tensor, ""]:
        """Return the distance of the two ends."""
        noise, target = now.path[:, 0], now.path[:, -1]
        end = walk(now.networks["student"], noise, self.nodes(self.steps), now.batch.condition)
        if self.distance == "pseudo_huber":
            return pseudo_huber(end, target).mean()
        return (end - target).square().mean()
