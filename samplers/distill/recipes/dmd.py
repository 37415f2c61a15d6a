"""Distribution matching by the student's own trajectory: DMD (one step) and TDM (several).

  x_k = the student's own walk to node t_k (no gradient),   x_0 = x_k - t_k v(x_k, t_k)
  x_b = x_k + (t_(k+1) - t_k) v,   x_tau = x_b noised from t_(k+1) to tau, t_(k+1) < tau < t_k
  student: the gradient of matching.py at x_tau;   fake: denoise x_tau to x_0
One step is DMD (Yin et al. 2024, arXiv:2311.18828, with the two time scales of DMD2,
arXiv:2405.14867), without its regression loss; more are TDM (Luo et al. 2025, arXiv:2503.06674).
Needs no data. Sharp where regression blurs; may drop modes. A sparse student, as Video-BLADE trains
it, is a student module with the sparse attention in it and a dense teacher.
Differs from the authors' code: no importance weights in the fake loss (TDM's w_IS), no GAN (DMD2).
"""

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from skipstep.samplers.distill.flow import as_rows
from skipstep.samplers.distill.matching import denoised, fake_loss, matching_loss
from skipstep.samplers.distill.protocol import Distiller, Moment
from skipstep.samplers.distill.walk import renoise, taught_nodes, walk

__all__ = ["TDM"]

LOWEST, HIGHEST = 0.02, 0.98


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TDM(Distiller):
    """Match the distribution of the student's own states to the teacher's, step by step."""

    name: ClassVar[str] = "tdm"
    summary: ClassVar[str] = "The student's own states match the teacher's distribution (DMD, TDM)."
    paper: ClassVar[str] = "Learning Few-Step Diffusion Models by Trajectory Distribution Matching"
    roles: ClassVar[tuple[str, ...]] = ("student", "fake")

    steps: Annotated[int, Field(ge=1, description="steps the student takes; 1 is DMD")] = 4
    shift: Annotated[float, Field(gt=0, description="over 1: more steps near the noise")] = 1.0
    fake_updates: Annotated[
        int, Field(ge=1, description="updates of the fake network for one of the student")
    ] = 3

    def role_at(self, iteration: int) -> str:
        """Return the student after so many updates of the fake network."""
        return "student" if iteration % (self.fake_updates + 1) == self.fake_updates else "fake"

    def nodes(self, steps: int) -> tuple[float, ...]:
        """Return the nodes the student was trained on; raises ValueError for another number."""
        return taught_nodes(steps, self.steps, self.shift)

    def loss(self, role: str, now: Moment) -> Float[Tensor, ""]:
        """Return the matching loss of the student or the denoising loss of the fake network."""
        nodes, condition, networks = self.nodes(self.steps), now.batch.condition, now.networks
        k = int(now.choose(1, self.steps))
        with torch.no_grad():
            x_k = walk(networks["student"], now.batch.noise, nodes[: k + 1], condition)
        t = torch.full((len(x_k),), nodes[k]).to(x_k)
        s = torch.full_like(t, nodes[k + 1])
        with torch.set_grad_enabled(role == "student"):
            v = networks["student"](x_k, t, condition)
            x_0, x_s = x_k - as_rows(t, x_k) * v, x_k + as_rows(s - t, x_k) * v
        low = max(nodes[k + 1], LOWEST)
        high = max(HIGHEST if self.steps == 1 else min(HIGHEST, nodes[k]), low)
        tau = (low + (high - low) * now.uniform(len(x_k))).to(x_k)
        x_tau = renoise(x_s, s, tau, now.noise_like(x_s))
        if role == "fake":
            return fake_loss(networks["fake"], x_0, x_tau, tau, condition)
        with torch.no_grad():
            real = denoised(networks["teacher"], x_tau, tau, condition)
            fake = denoised(networks["fake"], x_tau, tau, condition)
        return matching_loss(x_0, real, fake)
