"""SpeedUpNet (Chai et al. 2024, arXiv:2312.08887): an adapter that guides in one pass, with any
negative prompt, in few steps; the base model stays as it is.

  x_s = m guided Euler steps of the teacher from x_t to s, prompt c+ and negative prompt c-
  L = | v_student(x_t, t, c+, c-) - (x_t - x_s) / (t - s) |^2
With m = 1 it is guidance distillation, with more the multi-step consistency of the paper. x_t are
the student's own states (no gradient), so that its steps meet end to end. c- is empty or, for a
share of the samples, another sample's prompt. The student is an adapter of a few per cent of the
weights (speedup.py), which fits what was tuned from the same base.
Differs from the paper: one loss for both aims; the weights of its two are not published.
"""

import copy
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from skipstep.samplers.distill.flow import Condition, with_negative
from skipstep.samplers.distill.protocol import Adapter, Distiller, Moment
from skipstep.samplers.distill.speedup import with_speedup
from skipstep.samplers.distill.walk import shifted_nodes, taught_nodes, walk

__all__ = ["SpeedUpNet"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SpeedUpNet(Distiller):
    """Train cross-attention to the negative prompt; the base is not touched."""

    name: ClassVar[str] = "speedup"
    summary: ClassVar[str] = "An adapter: guidance with any negative prompt in one pass, few steps."
    paper: ClassVar[str] = "SpeedUpNet (2312.08887)"
    adapter: ClassVar[Adapter | None] = "speedup"

    steps: Annotated[int, Field(ge=1, description="steps the student takes")] = 4
    teacher_steps: Annotated[
        int, Field(ge=1, description="m: guided teacher steps in one of the student's")
    ] = 3
    negatives: Annotated[
        float, Field(ge=0, le=1, description="share of samples with a negative prompt")
    ] = 0.5

    def trained(self, module: nn.Module, *, lora_rank: int) -> nn.Module:
        """Return the frozen module with adapters; its own tensors are shared, not copied."""
        if lora_rank:
            raise ValueError(
                f"lora_rank={lora_rank}: speedup trains an adapter and nothing else; leave it out"
            )
        shared = copy.deepcopy(module, {id(p): p for p in module.parameters()})
        shared.requires_grad_(False)
        for name, adapter in with_speedup(shared).items():
            shared.get_submodule(name).set_processor(adapter)  # type: ignore[operator]
        return shared

    def nodes(self, steps: int) -> tuple[float, ...]:
        """Return the nodes the student was trained on; raises ValueError for another number."""
        return taught_nodes(steps, self.steps)

    def loss(self, role: str, now: Moment) -> Float[Tensor, ""]:
        """Return the squared error of one random step."""
        nodes, networks = self.nodes(self.steps), now.networks
        condition = with_negative(now.batch.condition, self._negative(now))
        k = int(now.choose(1, self.steps))
        t, s = nodes[k], nodes[k + 1]
        with torch.no_grad():
            x_t = walk(networks["student"], now.batch.noise, nodes[: k + 1], condition)
            between = tuple(s + (t - s) * u for u in shifted_nodes(self.teacher_steps))
            x_s = walk(networks["teacher"], x_t, between, condition)
        v = networks["student"](x_t, torch.full((len(x_t),), t).to(x_t), condition)
        loss: Tensor = (v - (x_t - x_s) / (t - s)).square().mean()
        return loss

    def _negative(self, now: Moment) -> Condition:
        """Return a negative prompt a sample: none, or another sample's prompt."""
        empty, own = now.batch.empty, now.batch.condition
        if not empty:
            raise ValueError("speedup needs a teacher with guidance: this one has no empty prompt")
        count = len(now.batch.noise)
        other = torch.randperm(count, generator=now.generator)
        chosen = now.uniform(count) < self.negatives

        def negative(value: Tensor, none: Tensor) -> Tensor:
            rows = chosen.reshape(-1, *[1] * (value.ndim - 1)).to(value.device)
            return torch.where(rows, value[other.to(value.device)], none)

        return {name: negative(value, empty[name]) for name, value in own.items()}
