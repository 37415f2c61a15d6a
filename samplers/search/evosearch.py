"""EvoSearch (He et al. 2025, arXiv:2505.17618): evolve noise and half-made pictures.

A generation begins at one node of a schedule that moves from noise to picture. Everyone is walked
to the end and scored; the score belongs to every state of theirs that lies on a later node of the
schedule. From those of the next node the best `elites` stay as they are, and the others are
replaced by children: a parent won by tournament, mutated, walked to the end.
  at node 0       x' = sqrt(1 - m^2) x + m n                                                  (1)
  at node k > 0   the parent's state at k + 1, brought back to k by fresh noise n               (2)
Both leave the distribution of states at their node as it is, so children are proper samples. Pays
where good pictures are rare and rewards cheap beside the network; best of N is often as good.
Differs from the authors' code: (2) stands for x' = x + sigma_k n, sigma_k the deviation of a
stochastic step, which adds noise on top and leaves the distribution; elites are not walked again.
"""

import math
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from skipstep.samplers.search.sampler import Found, Reward, Sampler, best_rows

__all__ = ["EvoSearch"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class EvoSearch:
    """Evolve a population along the sampler's way."""

    population: Annotated[int, Field(ge=2, description="members of a generation")] = 8
    schedule: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], ...],
        Field(min_length=1, description="where generations after the first begin, share of steps"),
    ] = (0.0, 0.0, 0.0, 0.4, 0.6)
    elites: Annotated[int, Field(ge=1, description="best members that stay as they are")] = 2
    mutation: Annotated[float, Field(gt=0, le=1, description="m of (1), at the noise")] = 0.4
    tournament: Annotated[int, Field(ge=1, description="members that compete to be a parent")] = 3

    def __post_init__(self) -> None:
        if self.elites >= self.population:
            raise ValueError(
                f"elites={self.elites} leave no room for children in a population of "
                f"{self.population}"
            )
        if list(self.schedule) != sorted(self.schedule):
            raise ValueError("schedule must rise: generations move from noise to picture")

    def run(self, sampler: Sampler, reward: Reward, generator: torch.Generator) -> Found:
        """Return the last generation, best first; the best ever seen is always in it."""
        before, steps = sampler.evaluations, sampler.steps
        nodes = [min(round(share * steps), steps - 1) for share in self.schedule]
        kept = sorted({n for node in nodes for n in (node, node + 1)} - {0, steps})
        x = sampler.noise(self.population, generator)
        visit = sampler.walk(x, 0, steps, kept)
        states = {0: x, **visit.states, steps: visit.state}
        pictures, scores = list(visit.pictures), reward(visit.pictures)
        history = [float(scores.max())]
        for node in nodes:
            elites = best_rows(scores, self.elites)
            parents = [
                self._parent(scores, generator) for _ in range(self.population - self.elites)
            ]
            children = self._mutated(sampler, states, parents, node, generator)
            later = [n for n in kept if n > node]
            visit = sampler.walk(children, node, steps, later)
            found = {node: children, **visit.states, steps: visit.state}
            # What lies before this node is nobody's ancestor any more.
            states = {n: torch.cat([states[n][elites], made]) for n, made in found.items()}
            pictures = [pictures[row] for row in elites] + list(visit.pictures)
            scores = torch.cat([scores[elites], reward(visit.pictures)])
            history.append(float(scores.max()))
        return finished(pictures, scores, sampler.evaluations - before, history)

    def _parent(self, scores: Tensor, generator: torch.Generator) -> int:
        among = torch.randperm(len(scores), generator=generator)[: self.tournament]
        return int(among[scores.cpu()[among].argmax()])

    def _mutated(
        self,
        sampler: Sampler,
        states: dict[int, Tensor],
        parents: list[int],
        node: int,
        generator: torch.Generator,
    ) -> Tensor:
        if node > 0:
            return sampler.renoise(states[node + 1][parents], node + 1, node, generator)
        fresh = sampler.noise(len(parents), generator)
        return math.sqrt(1 - self.mutation**2) * states[0][parents] + self.mutation * fresh


def finished(pictures: list[Any], scores: Tensor, evaluations: int, history: list[float]) -> Found:
    """Return a population in the order of its scores."""
    order = best_rows(scores, len(pictures))
    return Found(
        [pictures[row] for row in order],
        [float(scores[row]) for row in order],
        evaluations,
        history,
    )
