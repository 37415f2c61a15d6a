"""Train a student by a recipe: one loop for all of them, on accelerate.

The rate rises over `warmup` iterations and falls as a cosine to a hundredth of itself over
`iterations`, or over `minutes` of wall time where that ends first, so that its decay is never cut
off. What is shipped is the student's running mean. A run that is stopped goes on from its last
checkpoint with the same draws.
"""

import json
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from tqdm.auto import tqdm

from skipstep.samplers.distill.flow import Bridge, PlainBridge, Velocity
from skipstep.samplers.distill.networks import (
    Flow,
    average_towards,
    difference,
    trained_parameters,
)
from skipstep.samplers.distill.protocol import Distiller, Moment, Source
from skipstep.samplers.distill.times import LossAwareTimes

__all__ = ["Trainer", "Training"]

FLOOR = 0.01
LOG_EVERY = 25
SECOND_MOMENT = {"student": (0.9, 0.99), "fake": (0.0, 0.99)}

MakeOptimizers = Callable[[nn.Module], Sequence[torch.optim.Optimizer]]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Training:
    """How long, how fast and with what weights; the recipe says what is learned."""

    iterations: Annotated[int, Field(ge=1, description="updates of all networks together")] = 1000
    minutes: Annotated[
        float | None, Field(gt=0, description="wall time to train in all, if it ends before")
    ] = None
    batch: Annotated[int, Field(ge=1, description="samples in an update")] = 64
    rate: Annotated[float, Field(gt=0, description="peak learning rate of the student")] = 3e-4
    fake_rate: Annotated[
        float, Field(gt=0, description="peak learning rate of the fake network, where there is one")
    ] = 1e-3
    warmup: Annotated[int, Field(ge=0, description="iterations until the peak rate")] = 20
    average: Annotated[
        float, Field(ge=0, lt=1, description="how much of the running mean stays at an update")
    ] = 0.995
    clip: Annotated[float, Field(gt=0, description="largest norm of a gradient")] = 1.0
    lora_rank: Annotated[
        int, Field(ge=0, description="rank of the LoRA factors; 0 trains full weights")
    ] = 0
    precision: Annotated[
        Literal["no", "bf16", "fp16"], Field(description="mixed precision of accelerate")
    ] = "no"
    seed: Annotated[int, Field(ge=0, description="seed of all draws")] = 0
    checkpoint_minutes: Annotated[
        float, Field(gt=0, description="wall time between checkpoints")
    ] = 5.0
    sample_every: Annotated[
        int, Field(ge=0, description="iterations between samples; 0 draws none")
    ] = 0


class Trainer:
    """Hold the networks of one run, their optimisers, and where the run stands.

    Args:
        recipe: what the student learns.
        module: the denoiser to start from; it is not changed.
        source: where batches come from.
        options: how long and how fast.
        bridge: how the module is asked for a velocity.
        teacher: the guided teacher; without one the module itself, unguided.
        folder: where checkpoints and the log go; without one nothing is kept.
        optimizers: makes the student's optimisers, at their peak rates; AdamW at `options.rate`
            without it.
    """

    def __init__(
        self,
        recipe: Distiller,
        module: nn.Module,
        source: Source,
        options: Training,
        *,
        bridge: Bridge | None = None,
        teacher: Velocity | None = None,
        folder: Path | None = None,
        optimizers: MakeOptimizers | None = None,
    ) -> None:
        self.recipe, self.base, self.source, self.options = recipe, module, source, options
        self.folder = folder
        bridge = bridge or PlainBridge()
        device = next(module.parameters()).device
        self.accelerator = Accelerator(
            mixed_precision=options.precision,
            cpu=device.type == "cpu",
            step_scheduler_with_optimizer=False,
        )
        torch.manual_seed(options.seed)  # LoRA factors start at random
        self.modules = {
            role: recipe.trained(module, lora_rank=options.lora_rank)
            for role in (*recipe.roles, "average")
        }
        average_towards(self.modules["average"], self.modules["student"], 1.0)
        self.optimizers: dict[str, list[Any]] = {}
        for role in recipe.roles:
            made = list(
                optimizers(self.modules[role])
                if optimizers and role == "student"
                else self._adamw(role)
            )
            prepared = self.accelerator.prepare(self.modules[role], *made)
            self.modules[role], self.optimizers[role] = prepared[0], list(prepared[1:])
        self.peaks = {
            role: [group["lr"] for each in found for group in each.param_groups]
            for role, found in self.optimizers.items()
        }
        self.flows: dict[str, Velocity] = {
            role: Flow(part, bridge) for role, part in self.modules.items()
        }
        self.flows["teacher"] = teacher or Flow(module, bridge)
        self.state = _State(torch.Generator().manual_seed(options.seed))
        self.accelerator.register_for_checkpointing(self.state, self.modules["average"])

    def _adamw(self, role: str) -> list[torch.optim.Optimizer]:
        rate = self.options.rate if role == "student" else self.options.fake_rate
        betas = SECOND_MOMENT["fake" if "fake" in self.recipe.roles else "student"]
        parameters = list(trained_parameters(self.modules[role]).values())
        return [torch.optim.AdamW(parameters, lr=rate, betas=betas, weight_decay=0.0)]

    @property
    def progress(self) -> float:
        """Return the share of the run that is done, from 0 to 1."""
        done = self.state.iteration / self.options.iterations
        if self.options.minutes is not None:
            done = max(done, self.state.seconds / (60 * self.options.minutes))
        return min(done, 1.0)

    def step(self) -> float:
        """Take one update and return its loss; raises FloatingPointError where it is not finite."""
        state, options = self.state, self.options
        role = self.recipe.role_at(state.iteration)
        batch = self.source.draw(options.batch, state.generator)
        now = Moment(
            self.flows, batch, state.generator, self.progress, state.iteration, state.times
        )
        with self.accelerator.autocast():
            loss = self.recipe.loss(role, now)
        self.accelerator.backward(loss)
        parameters = list(trained_parameters(self.modules[role]).values())
        self.accelerator.clip_grad_norm_(parameters, options.clip)
        factor = self._factor()
        peaks = iter(self.peaks[role])
        for optimizer in self.optimizers[role]:
            for group in optimizer.param_groups:
                group["lr"] = next(peaks) * factor
            optimizer.step()
            optimizer.zero_grad()
        state.iteration += 1
        if role == "student":
            state.updates += 1
            stays = min(options.average, (1 + state.updates) / (10 + state.updates))
            average_towards(self.modules["average"], self.modules["student"], 1 - stays)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss of the {role} is {value} at iteration {state.iteration}: lower the rate"
                f" (rate={options.rate}), and delete the checkpoint if there is one"
            )
        return value

    def _factor(self) -> float:
        warm = min(1.0, (self.state.iteration + 1) / (self.options.warmup + 1))
        return warm * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * self.progress)))

    def run(self, on_sample: Callable[["Trainer"], None] | None = None) -> nn.Module:
        """Train to the end, from the last checkpoint if there is one; return the running mean.

        `on_sample(trainer)` is called every `sample_every` iterations and at the end.
        """
        self.restore()
        spent, started = self.state.seconds, time.perf_counter()
        saved, recent = spent, deque[float](maxlen=LOG_EVERY)
        bar = tqdm(
            total=self.options.iterations, initial=self.state.iteration, disable=None, unit="it"
        )
        with bar:
            while self.progress < 1:
                recent.append(self.step())
                self.state.seconds = spent + time.perf_counter() - started
                bar.update()
                if self.state.iteration % LOG_EVERY == 0:
                    mean = sum(recent) / len(recent)
                    bar.set_postfix(loss=f"{mean:.4f}")
                    self._log(mean)
                if self.state.seconds - saved > 60 * self.options.checkpoint_minutes:
                    saved = self.state.seconds
                    self.save()
                every = self.options.sample_every
                if on_sample and every and self.state.iteration % every == 0:
                    on_sample(self)
        self.save()
        if on_sample:
            on_sample(self)
        return self.modules["average"]

    def _log(self, loss: float) -> None:
        if self.folder is None or not self.accelerator.is_main_process:
            return
        line = {
            "iteration": self.state.iteration,
            "seconds": round(self.state.seconds, 1),
            "loss": round(loss, 6),
        }
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Write a checkpoint; the one before stays until the new one is whole."""
        if self.folder is None:
            return
        kept, partial = self.folder / "checkpoint", self.folder / "checkpoint.partial"
        self.accelerator.save_state(str(partial))
        if self.accelerator.is_main_process:
            shutil.rmtree(kept, ignore_errors=True)
            partial.rename(kept)

    def restore(self) -> bool:
        """Go on from the folder's checkpoint; return whether there is one."""
        if self.folder is None or not (self.folder / "checkpoint").exists():
            return False
        self.accelerator.load_state(str(self.folder / "checkpoint"))
        return True

    def student_tensors(self) -> dict[str, Tensor]:
        """Return what the running mean adds to the base's weights."""
        return difference(self.modules["average"], self.base)


class _State:
    """Where a run stands; accelerate keeps it with the weights."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.times = LossAwareTimes()
        self.iteration = 0
        self.updates = 0
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.get_state(),
            "losses_by_time": self.times.losses,
            "iteration": self.iteration,
            "updates": self.updates,
            "seconds": self.seconds,
        }

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        self.generator.set_state(stored["generator"])
        self.times.losses = stored["losses_by_time"]
        self.iteration = int(stored["iteration"])
        self.updates = int(stored["updates"])
        self.seconds = float(stored["seconds"])
