"""Recycled attention: look at all attention now and then, and keep what it was good for.

"Recycled Attention: Efficient Inference for Long-Context Language Models", Xu et al. 2024. What is
attended to changes slowly, so the blocks that held the attention of one step hold most of the next
one's. There the steps are tokens of a text, here they are steps of the denoising. Fails where the
picture changes fast: in the first steps, and with few of them.

    every `interval`-th sparse step   dense attention; P = its share in every block, exactly
    steps between                     the blocks of each row chosen from P, by keep or by mass

Differs from the paper: steps are timesteps, and blocks are kept instead of tokens; tokens follow a
space-filling curve, so that a block is a patch of the picture and its tokens look at like places.
"""

from typing import Annotated, ClassVar

import pydantic
import torch
from jaxtyping import Int
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.kernels.block_scores import antidiagonal_scores
from skipstep.kernels.permute import gilbert_order
from skipstep.plugins.attention.methods.base import Choice, Grid, Scene, SparseAttention
from skipstep.plugins.attention.methods.selection import keep_best

__all__ = ["Recycled"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Recycled(SparseAttention):
    """Choose blocks by the exact attention of an earlier step."""

    name: ClassVar[str] = "recycled"
    summary: ClassVar[str] = (
        "Sparse attention in the blocks that held the attention of a dense step."
    )
    paper: ClassVar[str] = (
        "Recycled Attention: Efficient Inference for Long-Context Language Models (Xu et al. 2024)"
    )
    takes_mass: ClassVar[bool] = True
    default_mass: ClassVar[float | None] = 0.95

    interval: Annotated[
        int, Field(ge=2, le=100, description="Steps from one dense one to the next.")
    ] = 5

    def order(self, grid: Grid, device: torch.device) -> Int[Tensor, " n"] | None:
        """Return the tokens along a space-filling curve."""
        return gilbert_order(*grid, device=device)

    def choose(self, scene: Scene) -> Choice:
        """Return the recycled blocks, or ask for a dense call and note what it looks at."""
        shape = *scene.q.shape[:2], scene.nq, scene.nk
        seen: Tensor | None = scene.memory.get("seen")
        is_due = scene.step - scene.memory.get("step", scene.step) >= self.interval
        if seen is None or seen.shape != shape or is_due:
            scene.memory["step"] = scene.step
            scene.memory["seen"] = antidiagonal_scores(
                scene.q,
                scene.k,
                stride=1,
                block_q=scene.block_q,
                block_k=scene.block_k,
                scale=scene.scale,
            )
            return Choice(torch.ones(shape, dtype=torch.bool).to(scene.q.device), is_dense_now=True)
        return Choice(keep_best(seen, scene.keep, scene.mass))
