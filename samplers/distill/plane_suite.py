"""Prove recipes on the plane: a student of each, beside its exact teacher in as many Euler steps.

`gain` is teacher's distance / student's distance to the data, measured with the quick settings
(seed 0, one thread); a test asks for half of it. All students start from one small network that has
learned the exact flow for 400 updates.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skipstep.samplers.distill.blockwise import Blockwise
from skipstep.samplers.distill.catalog import load_recipe
from skipstep.samplers.distill.flow import PlainBridge
from skipstep.samplers.distill.networks import Flow
from skipstep.samplers.distill.plane import (
    Mixture,
    PlaneNet,
    PlaneSource,
    sliced_wasserstein,
    teacher_distance,
)
from skipstep.samplers.distill.protocol import Distiller
from skipstep.samplers.distill.trainer import Trainer, Training

__all__ = ["CASES", "Case", "Proof", "learned_flow", "prove"]

ENDS = (1.0, 0.0)
HALVES = (1.0, 0.5, 0.0)
FOUR = (1.0, 0.75, 0.5, 0.25, 0.0)
QUICK = 250
JUDGED = 4096


@dataclass(frozen=True)
class Case:
    """One recipe with the options it has in the suite."""

    recipe: str
    options: dict[str, object]
    steps: int
    gain: float
    times: Sequence[float] = ()
    rate: float = 2e-3
    edges: Sequence[float] = ()
    """Where a student of several networks passes from one to the next."""
    guidance: float = 1.0
    """The teacher's, on paths of prompts."""
    anchor: int = 0
    """Updates a step that bring the teacher's guided paths to their anchor."""

    @property
    def name(self) -> str:
        """Return recipe, steps and options in one line."""
        told = ", ".join(f"{k}={v}" for k, v in self.options.items() if k != "steps")
        told += ", blockwise" if self.edges else ""
        told += f"guidance {self.guidance:g}" if self.guidance != 1 else ""
        told += ", anchored" if self.anchor else ""
        return f"{self.recipe}, {self.steps} steps" + (f" ({told})" if told else "")


@dataclass(frozen=True)
class Proof:
    """Distances to the data, of the student and of its teacher in as many steps."""

    case: Case
    student: float
    teacher: float

    @property
    def gain(self) -> float:
        """Return how many times nearer the student is."""
        return self.teacher / self.student


CASES = (
    Case("trajectory", {"at": HALVES}, 2, 7.1, HALVES),
    Case("trajectory", {"at": HALVES}, 2, 7.1, HALVES, edges=HALVES),
    Case("reflow", {}, 1, 11.8, ENDS),
    Case("reflow", {"times": "bifocal"}, 1, 12.2, ENDS),
    Case("reflow", {"times": "loss_aware"}, 1, 11.8, ENDS),
    Case("rayflow", {}, 1, 11.3, FOUR),
    Case("unroll", {"steps": 1}, 1, 15.8, ENDS),
    Case("consistency", {}, 1, 4.2),
    Case("segmented", {"segments": 2, "merging": True}, 2, 4.5),
    Case("shortcut", {}, 1, 13.1),
    Case("meanflow", {}, 1, 3.4),
    Case("imm", {}, 1, 11.0),
    Case("tdm", {"steps": 1}, 1, 10.5, rate=5e-4),
    Case("tdm", {"steps": 2}, 2, 4.1, rate=5e-4),
    Case(
        "backward",
        {"steps": 2, "t_min": 0.02, "t_max": 0.3, "teacher_steps": 4},
        2,
        2.7,
        rate=1e-3,
    ),
)


def learned_flow(mixture: Mixture, iterations: int = 400) -> nn.Module:
    """Return a small network that has learned the exact flow."""
    torch.manual_seed(0)
    settings = Training(iterations=iterations, batch=256, rate=3e-3, average=0.99)
    source = PlaneSource(mixture)
    return Trainer(load_recipe("guidance"), PlaneNet(), source, settings, teacher=mixture).run()


def prove(case: Case, mixture: Mixture, start: nn.Module, iterations: int = QUICK) -> Proof:
    """Train a student by the case's recipe and measure both."""
    recipe = load_recipe(case.recipe, case.options)
    average = min(0.98, 1 - 5 / iterations) if iterations <= QUICK else 0.995
    settings = Training(iterations=iterations, batch=256, rate=case.rate, average=average)
    source = PlaneSource(mixture, case.times)
    begun = Blockwise(start, case.edges) if case.edges else copy.deepcopy(start)
    trainer = Trainer(recipe, begun, source, settings, teacher=mixture)
    student = trainer.run()
    distance = distance_of(recipe, student, mixture, case.steps)
    return Proof(case, distance, teacher_distance(mixture, case.steps))


@torch.no_grad()
def distance_of(recipe: Distiller, student: nn.Module, mixture: Mixture, steps: int) -> float:
    """Return the distance of the student's samples to fresh data."""
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(JUDGED, 2, generator=generator)
    data: Tensor = mixture.sample(JUDGED, generator)
    flow = Flow(student, PlainBridge())
    made = recipe.sample(flow, noise, steps, {}, torch.Generator().manual_seed(8))
    return sliced_wasserstein(made, data)
