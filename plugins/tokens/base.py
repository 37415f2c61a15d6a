"""What every way to reduce tokens has in common: its options, and the one question it answers."""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import pydantic
from jaxtyping import Float
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.plugins.tokens.token_map import TokenMap

__all__ = ["ImportancePlugin", "Place", "TokenPlugin"]


@dataclass
class Place:
    """Tell where in a denoiser call a reduction is asked for.

    Args:
        depth: how deep in the model, 0 for its first self-attention and 1 for its last.
        grid: (frames, height, width) of the picture's tokens, or None where nobody knows it.
        memory: what was kept for this sample in this call; empty at its start.
    """

    depth: float
    grid: tuple[int, int, int] | None
    memory: dict[Hashable, Any] = field(default_factory=dict)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TokenPlugin(ABC):
    """Hold the options of every token reduction; a subclass says which tokens share a slot."""

    kind: ClassVar[str] = "tokens"
    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""

    dense_steps: Annotated[
        int, Field(ge=0, description="First steps in which no token is reduced.")
    ] = 0
    min_tokens: Annotated[
        int,
        Field(ge=2, description="Sequences of fewer picture tokens than this are not reduced."),
    ] = 64

    @property
    @abstractmethod
    def keeps_all(self) -> bool:
        """Say whether these options reduce nothing anywhere."""

    @abstractmethod
    def choose(
        self, x: Float[Tensor, "n c"], importance: Float[Tensor, " n"] | None, place: Place
    ) -> TokenMap | None:
        """Return which tokens of one sample share a slot, or None to leave them all as they are.

        `x` goes into a self-attention; `importance` is the attention that each token receives, and
        is given to plugins that ask for it (`ImportancePlugin`).
        """


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ImportancePlugin(TokenPlugin):
    """Hold the options of reductions that ask how much attention each token receives."""

    queries: Annotated[
        int, Field(ge=1, le=4096, description="Sampled queries that importance is measured with.")
    ] = 64
    renew: Annotated[
        int,
        Field(ge=1, le=64, description="Importance is measured in every so manieth attention."),
    ] = 2
