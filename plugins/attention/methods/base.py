"""What a sparse attention is: a choice of key blocks for every block of queries.

The tokens of one attention call lie in slots: those of the picture, in raster order or in an order
of the method's own, and those of the text, if it takes part. Slots are cut in blocks; a method
returns which pairs of blocks are kept. Who calls it adds what no method may drop (text, one block
per row), runs the kernel over the lists and puts the tokens back.

A budget is one of two: `keep`, the share of the key blocks that each row of blocks keeps, or
`mass`, the share of the estimated attention that the kept blocks must hold.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import torch
from jaxtyping import Bool, Float, Int
from pydantic import ConfigDict, Field
from torch import Tensor

__all__ = ["AttentionPlugin", "Choice", "Grid", "Scene", "Share", "SharedOptions", "Side"]
__all__ += ["SparseAttention", "WayToAttend", "any_in_block"]

Grid = tuple[int, int, int]
"""Frames, rows and columns of the picture's tokens."""

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Keep = Annotated[
    Share | None, Field(description="Share of the key blocks that every row of blocks keeps.")
]
Mass = Annotated[
    Share | None,
    Field(description="Share of the estimated attention that the kept blocks must hold."),
]
Side = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Scene:
    """One attention call as a method sees it; nothing in it may be changed but `memory`.

    Args:
        q, k, v: queries, keys and values in slots, text and padding included.
        grid: frames, rows and columns of the picture.
        places: which token of the picture's raster lies in each slot; -1 is text.
        block_q, block_k: rows of a query block and of a key block.
        scale: of the logits.
        step: number of this step in the run, from 0.
        keep, mass: the budget; exactly one of them is set.
        memory: what this method noted at earlier steps of this run, for this layer and branch.
    """

    q: Float[Tensor, "b h n d"]
    k: Float[Tensor, "b h n d"]
    v: Float[Tensor, "b h n d"]
    grid: Grid
    places: Int[Tensor, " n"]
    block_q: int
    block_k: int
    scale: float
    step: int = 0
    keep: float | None = None
    mass: float | None = None
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def is_text(self) -> Bool[Tensor, " n"]:
        """Say which slots hold text."""
        return self.places < 0

    @property
    def nq(self) -> int:
        """Number of query blocks."""
        return -(-self.q.shape[2] // self.block_q)

    @property
    def nk(self) -> int:
        """Number of key blocks."""
        return -(-self.k.shape[2] // self.block_k)

    def coordinates(self) -> Int[Tensor, "n 3"]:
        """Return frame, row and column of every slot; -1 for text."""
        _, rows, columns = self.grid
        inside = self.places.clamp_min(0)
        found = torch.stack(
            [inside // (rows * columns), inside // columns % rows, inside % columns], dim=-1
        )
        return found.where(self.places[:, None] >= 0, -1)

    def text_blocks(self, block: int) -> Bool[Tensor, " blocks"]:
        """Say which blocks of `block` slots hold any text."""
        return any_in_block(self.is_text, block)


@dataclass(frozen=True)
class Choice:
    """What a method keeps, and in which slots it wants the tokens, where that differs by head.

    Args:
        mask: which key blocks every query block keeps; axes of size 1 are shared.
        q_order, k_order: slot to slot: the slot whose token comes i-th; None leaves them. Text,
            which lies behind the picture where a method moves tokens, stays where it is.
        is_pooled: let the means of all key blocks take part as well, each for its whole block.
        is_dense_now: attend densely in this call, and choose again in the next.
    """

    mask: Bool[Tensor, "#b #h nq nk"]
    q_order: Int[Tensor, "b h n"] | None = None
    k_order: Int[Tensor, "b h n"] | None = None
    is_pooled: bool = False
    is_dense_now: bool = False


def any_in_block(flags: Bool[Tensor, "*b n"], block: int) -> Bool[Tensor, "*b blocks"]:
    """Say in which blocks of the last axis any flag is set.

    >>> any_in_block(torch.tensor([False, True, False, False, False]), 2).tolist()
    [True, False, False]
    """
    padded = torch.nn.functional.pad(flags, (0, -flags.shape[-1] % block))
    found: Tensor = padded.reshape(*padded.shape[:-1], -1, block).any(-1)
    return found


class AttentionPlugin(ABC):
    """Options of one way to attend; the kind attaches what `resolve` returns."""

    name: ClassVar[str]
    kind: ClassVar[str] = "attention"
    summary: ClassVar[str]
    paper: ClassVar[str] = ""

    @abstractmethod
    def resolve(self) -> "WayToAttend":
        """Return the way to attend with all its options."""


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class WayToAttend(AttentionPlugin):
    """Hold the options of every way to attend: where it stays away."""

    dense_steps: Annotated[
        int, Field(ge=0, description="First steps of a run that stay dense; they set the picture.")
    ] = 5
    dense_layers: Annotated[int, Field(ge=0, description="First layers that stay dense.")] = 1
    force: Annotated[
        bool,
        Field(description="Attend so where dense attention is faster, for tests and studies."),
    ] = False


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SharedOptions(WayToAttend):
    """Hold the options that all sparse methods share."""

    keep: Keep = None
    mass: Mass = None
    block_q: Annotated[int, Field(ge=1, le=1024, description="Tokens of a query block.")] = 128
    block_k: Annotated[int, Field(ge=1, le=1024, description="Tokens of a key block.")] = 64
    delta: Annotated[
        int,
        Field(
            ge=0,
            le=1024,
            description="Attend densely with every so many-th query and shift its neighbours by "
            "what that changed; 0 is off, 64 costs 1.6 % of dense attention.",
        ),
    ] = 0
    bits: Annotated[
        Literal[4, 8] | None,
        Field(description="Quantise queries and keys of the kept blocks to so many bits."),
    ] = None
    keep_text: Annotated[
        bool, Field(description="Keep all text tokens, and all that they attend to.")
    ] = True
    probe_rows: Annotated[
        int,
        Field(ge=0, le=1024, description="Queries per call whose kept mass is measured; 0: none."),
    ] = 16
    grid: Annotated[
        tuple[Side, Side, Side] | None,
        Field(description="Frames, rows and columns of the tokens where they cannot be found."),
    ] = None
    text: Annotated[
        Literal["before", "after"] | None,
        Field(description="Where text tokens stand to the picture's, where it cannot be found."),
    ] = None


class SparseAttention(SharedOptions):
    """Say what a method must answer.

    `takes_mass`: it estimates attention. `needs_frames`: it is about time, so a picture is refused.
    `moves_tokens`: it orders the tokens of every head anew. The defaults are the paper's budget.
    """

    takes_mass: ClassVar[bool] = False
    needs_frames: ClassVar[bool] = False
    moves_tokens: ClassVar[bool] = False
    default_keep: ClassVar[float | None] = None
    default_mass: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        """Refuse two budgets, and a mass where nothing estimates one."""
        if self.keep is not None and self.mass is not None:
            raise ValueError(
                f"keep={self.keep} and mass={self.mass} are two budgets: give one of them"
            )
        if self.mass is not None and not self.takes_mass:
            raise ValueError(
                f"mass={self.mass}: {self.name} estimates no attention and cannot reach a mass; "
                "give keep"
            )

    def resolve(self) -> "SparseAttention":
        """Return itself."""
        return self

    def budget(self) -> tuple[float | None, float | None]:
        """Return (keep, mass) with the paper's default where neither is given."""
        if self.keep is None and self.mass is None:
            return self.default_keep, self.default_mass
        return self.keep, self.mass

    def order(self, grid: Grid, device: torch.device) -> Int[Tensor, " n"] | None:
        """Return in which order the picture's tokens are blocked; None is the raster."""
        return None

    @abstractmethod
    def choose(self, scene: Scene) -> Choice:
        """Return the kept pairs of blocks of one call."""
