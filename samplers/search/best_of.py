"""Best of N: the search that every other one has to beat at equal evaluations.

It is also the only one that a student of few steps leaves room for: its walks have no middle.
"""

from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from skipstep.samplers.search.sampler import Found, Reward, Sampler, best_rows

__all__ = ["BestOf"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class BestOf:
    """Make many pictures and keep the best."""

    population: Annotated[int, Field(ge=1, description="pictures to make")] = 8

    def run(self, sampler: Sampler, reward: Reward, generator: torch.Generator) -> Found:
        """Return all pictures, best first."""
        before = sampler.evaluations
        visit = sampler.walk(sampler.noise(self.population, generator), 0, sampler.steps)
        scores = reward(visit.pictures)
        order = best_rows(scores, self.population)
        return Found(
            [visit.pictures[row] for row in order],
            [float(scores[row]) for row in order],
            sampler.evaluations - before,
            [float(scores[order[0]])],
        )
