"""Particle resampling (Singhal et al. 2025, Feynman-Kac steering, arXiv:2501.06848): give up on bad
pictures early and spend their evaluations on good ones.

At chosen nodes every particle's picture so far is scored, r_k, and particles are drawn anew with
  w = exp(lambda (r_k - r_(k-1)) / spread),   spread = the deviation of r_k over the particles   (1)
(systematic resampling). Copies then part by fresh noise: they are brought back by one node. Needs
rewards that mean something on unfinished pictures; early in a walk those are blurred.
Differs from the authors' code: rewards are counted in their own spread, so that lambda has no unit;
the walk between is deterministic, so the noise that parts copies costs one evaluation more a
resampling; the first copy of a particle goes on without it.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from skipstep.samplers.search.evosearch import finished
from skipstep.samplers.search.sampler import Found, Reward, Sampler

__all__ = ["Particles", "systematic"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Particles:
    """Resample a population on its way."""

    population: Annotated[int, Field(ge=2, description="particles")] = 8
    schedule: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...],
        Field(min_length=1, description="where particles are resampled, share of the steps"),
    ] = (0.1, 0.2, 0.3, 0.5)
    sharpness: Annotated[float, Field(gt=0, description="lambda of (1)")] = 2.0

    def __post_init__(self) -> None:
        if list(self.schedule) != sorted(self.schedule):
            raise ValueError("schedule must rise: a walk does not turn back")

    def run(self, sampler: Sampler, reward: Reward, generator: torch.Generator) -> Found:
        """Return all particles, best first."""
        before, steps = sampler.evaluations, sampler.steps
        x, at = sampler.noise(self.population, generator), 0
        known = torch.zeros(self.population, dtype=torch.float64)
        history = []
        for share in self.schedule:
            node = min(max(round(share * steps), at + 1, 2), steps - 1)
            visit = sampler.walk(x, at, node)
            scores = reward(visit.pictures).double().cpu()
            history.append(float(scores.max()))
            spread = scores.std().clamp(min=1e-12)
            rows = systematic(self.sharpness * (scores - known) / spread, generator)
            x, known, at = visit.state[rows], scores[rows], node
            copies = [i for i in range(1, len(rows)) if rows[i] == rows[i - 1]]
            if copies:
                apart = sampler.renoise(x[copies], node, node - 1, generator)
                x[copies] = sampler.walk(apart, node - 1, node).state
        visit = sampler.walk(x, at, steps)
        scores = reward(visit.pictures)
        history.append(float(scores.max()))
        return finished(list(visit.pictures), scores, sampler.evaluations - before, history)


def systematic(logits: Float[Tensor, " b"], generator: torch.Generator) -> list[int]:
    """Return as many rows as there are weights, in rising order, each about as often as its share
    of exp(logits) says: one uniform draw places all.

    >>> systematic(torch.tensor([0.0, -50.0, 0.0, -50.0]), torch.Generator().manual_seed(0))
    [0, 0, 2, 2]
    """
    shares = torch.softmax(logits.double(), 0)
    count = len(shares)
    start = torch.rand(1, generator=generator, dtype=torch.float64)
    places = (torch.arange(count, dtype=torch.float64) + start) / count
    rows: list[int] = torch.searchsorted(shares.cumsum(0), places).clamp(max=count - 1).tolist()
    return rows
