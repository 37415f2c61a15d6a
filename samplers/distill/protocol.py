"""What a recipe is: frozen options, a loss for each network it trains, and how the student walks.

A recipe sees networks as flows (flow.py) and a batch of noise, data and teacher's paths; it never
sees an optimiser, a device or a file. The trainer (trainer.py) owns those.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skipstep.samplers.distill.flow import Condition, Velocity
from skipstep.samplers.distill.networks import copied
from skipstep.samplers.distill.times import LossAwareTimes, TimeLaw, draw_times
from skipstep.samplers.distill.walk import shifted_nodes, walk

__all__ = ["Adapter", "Batch", "Distiller", "Moment", "Need", "Source"]

Need = Literal["data", "path"]
Adapter = Literal["speedup", "causal"]


@dataclass(frozen=True)
class Batch:
    """One draw of what a recipe asked for in `needs`.

    `data` are pictures (or the teacher's samples); `path` is the teacher's own way from `noise`,
    with its states at `times` from 1 to 0; `empty` is the condition of no prompt, with one row.
    """

    noise: Float[Tensor, " b *size"]
    condition: Condition = field(default_factory=dict)
    empty: Condition = field(default_factory=dict)
    data: Float[Tensor, " b *size"] | None = None
    path: Float[Tensor, "b k *size"] | None = None
    times: tuple[float, ...] = ()


class Source(Protocol):
    """Where batches come from."""

    def draw(self, size: int, generator: torch.Generator) -> Batch: ...


@dataclass(frozen=True)
class Moment:
    """One iteration as a recipe sees it: networks by role, a batch, and how far training is.

    Roles: "student", "teacher" (guided), "average" (the student's running mean), "fake" where the
    recipe trains one.
    """

    networks: Mapping[str, Velocity]
    batch: Batch
    generator: torch.Generator
    progress: float
    iteration: int = 0
    times: LossAwareTimes = field(default_factory=LossAwareTimes)

    @property
    def data(self) -> Float[Tensor, " b *size"]:
        """Return the batch's data; raises ValueError without any."""
        if self.batch.data is None:
            raise ValueError("this recipe needs data: give the source pictures or teacher samples")
        return self.batch.data

    @property
    def path(self) -> Float[Tensor, "b k *size"]:
        """Return the teacher's path; raises ValueError without one."""
        if self.batch.path is None:
            raise ValueError("this recipe needs teacher paths: make them first (trajectories)")
        return self.batch.path

    def noise_like(self, x: Tensor) -> Tensor:
        """Return fresh standard normal noise."""
        z = torch.randn(x.shape, generator=self.generator, dtype=x.dtype)
        return z.to(x.device)

    def uniform(self, count: int) -> Tensor:
        """Return numbers in [0, 1)."""
        return torch.rand(count, generator=self.generator)

    def choose(self, count: int, among: int) -> Tensor:
        """Return whole numbers in [0, among)."""
        return torch.randint(among, (count,), generator=self.generator)

    def draw_times(self, law: TimeLaw, count: int) -> tuple[Tensor, Tensor]:
        """Return times and the weights of their losses."""
        if law == "loss_aware":
            return self.times.draw(count, self.generator)
        return draw_times(law, count, self.generator), torch.ones(count)


class Distiller(ABC):
    """A recipe; its fields are its options.

    `roles` are the networks that are trained, `student` always among them; `needs` is what a batch
    must hold. A student is a velocity, or with `is_map` a mean velocity that is told where the step
    ends. `gamma` says how much noise it draws anew after each step (walk.py). `adapter` names
    what the student has beside the weights of its base.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    roles: ClassVar[tuple[str, ...]] = ("student",)
    needs: ClassVar[frozenset[Need]] = frozenset()
    is_map: ClassVar[bool] = False
    gamma: ClassVar[float] = 0.0
    adapter: ClassVar[Adapter | None] = None

    @abstractmethod
    def loss(self, role: str, now: Moment) -> Float[Tensor, ""]:
        """Return the loss of the network of this role."""

    def trained(self, module: nn.Module, *, lora_rank: int) -> nn.Module:
        """Return a copy of the module whose parameters that want a gradient are to be trained."""
        return copied(module, lora_rank=lora_rank)

    def role_at(self, iteration: int) -> str:
        """Return which network is trained at an iteration."""
        return "student"

    def nodes(self, steps: int) -> tuple[float, ...]:
        """Return the times the student visits in `steps` steps, from 1 to 0."""
        return shifted_nodes(steps)

    def scheduler_nodes(self, steps: int) -> tuple[float, ...]:
        """Return the times at which a pipeline's scheduler asks the student."""
        return self.nodes(steps)

    def sample(
        self,
        student: Velocity,
        noise: Float[Tensor, " b *size"],
        steps: int,
        condition: Condition,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " b *size"]:
        """Return what the student makes of noise in `steps` steps."""
        return walk(
            student,
            noise,
            self.nodes(steps),
            condition,
            gamma=self.gamma,
            is_map=self.is_map,
            generator=generator,
        )
