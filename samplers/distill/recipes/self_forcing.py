"""Self Forcing (Huang et al. 2025, arXiv:2506.08009): a causal student that is trained on its own
past.

  x_0 = the student's own roll-out, chunk after chunk from its rolling memory (causal.py)
  student: the gradient of matching.py on the whole clip, noised to tau;   fake: denoise it
Teacher forcing trains each chunk behind true ones and meets its own errors only at work, where they
add up; here training and work are the same walk. All chunks leave at one random step, which alone
has a gradient; memories are written without one. The fake network and the teacher see the clip as
a whole. `forced_updates` come first, which teach the teacher's weights to look back at all:
  L = | v(x_t, t) - (eps - x_0) |^2, every chunk behind the true ones of the teacher's sample
Differs from the authors' code: that first stage regresses pairs of noise and sample there; the
clip's noise level in the matching is not shifted.
"""

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from skipstep.samplers.distill.causal import make_causal, roll_behind, roll_out
from skipstep.samplers.distill.flow import Condition, Velocity, as_rows
from skipstep.samplers.distill.matching import denoised, fake_loss, matching_loss
from skipstep.samplers.distill.networks import Flow, copied
from skipstep.samplers.distill.protocol import Adapter, Distiller, Moment, Need
from skipstep.samplers.distill.walk import taught_nodes

__all__ = ["SelfForcing"]

LOWEST, HIGHEST = 0.02, 0.98


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SelfForcing(Distiller):
    """Match the distribution of clips that the causal student makes of its own past."""

    name: ClassVar[str] = "self_forcing"
    summary: ClassVar[str] = "A causal student of clips, trained behind its own chunks."
    paper: ClassVar[str] = "Self Forcing (2506.08009)"
    roles: ClassVar[tuple[str, ...]] = ("student", "fake")
    needs: ClassVar[frozenset[Need]] = frozenset({"data"})
    adapter: ClassVar[Adapter | None] = "causal"

    steps: Annotated[int, Field(ge=1, description="steps of a chunk")] = 4
    chunk: Annotated[int, Field(ge=1, description="frames made together")] = 3
    window: Annotated[int, Field(ge=1, description="chunks that are remembered")] = 7
    shift: Annotated[float, Field(gt=0, description="over 1: more steps near the noise")] = 5.0
    forced_updates: Annotated[
        int, Field(ge=0, description="updates behind true chunks, before those behind its own")
    ] = 500
    fake_updates: Annotated[
        int, Field(ge=1, description="updates of the fake network for one of the student")
    ] = 5

    def trained(self, module: nn.Module, *, lora_rank: int) -> nn.Module:
        """Return a copy that remembers."""
        own = copied(module, lora_rank=lora_rank)
        make_causal(own)
        return own

    def role_at(self, iteration: int) -> str:
        """Return the student while it is forced, then after so many updates of the fake network."""
        turn = (iteration - self.forced_updates) % (self.fake_updates + 1)
        return "student" if iteration < self.forced_updates or turn == self.fake_updates else "fake"

    def nodes(self, steps: int) -> tuple[float, ...]:
        """Return the nodes of a chunk; raises ValueError for another number of steps."""
        return taught_nodes(steps, self.steps, self.shift)

    def scheduler_nodes(self, steps: int) -> tuple[float, ...]:
        """Return one step: the pipeline sees the whole roll-out as one call of its denoiser."""
        self.nodes(steps)
        return (1.0, 0.0)

    def loss(self, role: str, now: Moment) -> Float[Tensor, ""]:
        """Return the matching loss of the student or the denoising loss of the fake network."""
        condition, networks = now.batch.condition, now.networks
        if now.iteration < self.forced_updates:
            return self._forced(now)
        with torch.set_grad_enabled(role == "student"):
            x_0 = roll_out(
                student_of(networks["student"]),
                now.batch.noise,
                self.nodes(self.steps),
                condition,
                chunk=self.chunk,
                window=self.window,
                leave_at=int(now.choose(1, self.steps)),
                generator=now.generator,
            )
        tau = (LOWEST + (HIGHEST - LOWEST) * now.uniform(len(x_0))).to(x_0)
        x_tau = torch.lerp(x_0, now.noise_like(x_0), as_rows(tau, x_0))
        if role == "fake":
            return fake_loss(networks["fake"], x_0, x_tau, tau, condition)
        with torch.no_grad():
            real = denoised(networks["teacher"], x_tau, tau, condition)
            fake = denoised(networks["fake"], x_tau, tau, condition)
        return matching_loss(x_0, real, fake)

    def _forced(self, now: Moment) -> Float[Tensor, ""]:
        """Return the flow's loss of every chunk behind the true ones."""
        x_0 = now.data
        eps, t = now.noise_like(x_0), now.uniform(len(x_0)).to(x_0)
        x_t = torch.lerp(x_0, eps, as_rows(t, x_0))
        v = roll_behind(
            student_of(now.networks["student"]),
            x_0,
            x_t,
            t,
            now.batch.condition,
            chunk=self.chunk,
            window=self.window,
        )
        loss: Tensor = (v - (eps - x_0)).square().mean()
        return loss

    @torch.no_grad()
    def sample(
        self,
        student: Velocity,
        noise: Float[Tensor, " b *size"],
        steps: int,
        condition: Condition,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " b *size"]:
        """Return the clips that the student makes chunk by chunk."""
        return roll_out(
            student_of(student),
            noise,
            self.nodes(steps),
            condition,
            chunk=self.chunk,
            window=self.window,
            generator=generator,
        )


def student_of(flow: Velocity) -> Flow:
    """Return the flow as one whose module can be reached; raises TypeError for another."""
    if not isinstance(flow, Flow):
        raise TypeError(f"self_forcing walks a module, and was given a {type(flow).__name__}")
    return flow
