"""How a search sees a sampler: states at numbered nodes, walks between them, and rewards.

Node 0 is pure noise, node `steps` the picture. A search never sees a model: an exact score, a
pipeline (pipelines/search.py) and a student are the same to it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Found", "Method", "Reward", "Sampler", "Visit", "best_rows"]

Reward = Callable[[Any], Float[Tensor, " b"]]
"""Scores of what `Visit.pictures` holds; more is better."""


@dataclass(frozen=True)
class Visit:
    """Hold what a walk came by.

    `pictures` is what the network sees behind the last state, or the end itself, in whatever form
    the sampler's rewards take; `states` are those that were to be kept, by node.
    """

    state: Float[Tensor, "b ..."]
    pictures: Any
    states: dict[int, Float[Tensor, "b ..."]] = field(default_factory=dict)


class Sampler(Protocol):
    """A deterministic way from noise to pictures that can be entered and left at every node."""

    @property
    def steps(self) -> int:
        """Return the number of the last node."""

    @property
    def evaluations(self) -> int:
        """Return how many pictures the network was asked for so far."""

    def noise(self, count: int, generator: torch.Generator) -> Float[Tensor, "b ..."]:
        """Return states of node 0."""

    def walk(
        self, x: Float[Tensor, "b ..."], begin: int, end: int, keep: Collection[int] = ()
    ) -> Visit:
        """Go from node `begin` to node `end`."""

    def renoise(
        self, x: Float[Tensor, "b ..."], node: int, to: int, generator: torch.Generator
    ) -> Float[Tensor, "b ..."]:
        """Return states of node `node` brought back to the noisier node `to` by fresh noise."""


@dataclass(frozen=True)
class Found:
    """Hold what a search came up with, best first.

    `pictures` and `scores` are the last population's best, `evaluations` all that was spent and
    `history` the best score after each round.
    """

    pictures: list[Any]
    scores: list[float]
    evaluations: int
    history: list[float]

    @property
    def score(self) -> float:
        """Return the best score."""
        return self.scores[0]


class Method(Protocol):
    """A search: frozen options that run on any sampler."""

    def run(self, sampler: Sampler, reward: Reward, generator: torch.Generator) -> Found: ...


def best_rows(scores: Float[Tensor, " b"], count: int) -> list[int]:
    """Return the rows of the highest scores, the highest first.

    >>> best_rows(torch.tensor([0.1, 0.9, 0.5]), 2)
    [1, 2]
    """
    return scores.argsort(descending=True, stable=True)[:count].tolist()
