"""Radial Attention: the further apart two frames, the narrower the band of tokens that see each
other.

"Radial Attention: O(n log n) Sparse Attention with Energy Decay for Long Video Generation", Li et
al. 2025 (arXiv:2506.19852). Attention between frames falls off exponentially with their distance,
and so does the compute spent on it. A static mask: nothing is estimated. Fails where far frames
repeat each other exactly (camera cuts back).

For frames at distance t, with n tokens a frame and g = bits of t (1 for 1, 2 for 2 and 3, ...):

    width(t) = decay 2^bits(n) / 2^g, at least one block;  t <= 1 sees everything
    tokens at places p and p' of their frames see each other where |p - p'| <= width(t)
    once 2^bits(n) / 2^g is r < 1 blocks, only every (1/r)-th distance t is seen at all
    the first frame is seen by all

Differs from the authors' code: p - p' is taken between the middles of the blocks' pieces of a frame
(theirs makes a mask of tokens and keeps a block by its fill); nothing has to divide; `keep` finds
the decay whose mask is nearest to that share; text is kept.
"""

from typing import Annotated, ClassVar

import pydantic
import torch
from jaxtyping import Bool
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.plugins.attention.methods.base import Choice, Scene, SparseAttention
from skipstep.plugins.attention.methods.geometry import remembered

__all__ = ["Radial", "radial_mask"]

SEARCH = 24
"""Halvings of the interval in which `keep` looks for a decay."""


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Radial(SparseAttention):
    """Keep a band that narrows with the distance of the frames."""

    name: ClassVar[str] = "radial"
    summary: ClassVar[str] = "Static sparse attention that thins out with distance in time."
    paper: ClassVar[str] = (
        "Radial Attention: O(n log n) Sparse Attention with Energy Decay for Long Video "
        "Generation (arXiv:2506.19852)"
    )
    needs_frames: ClassVar[bool] = True

    decay: Annotated[
        float,
        Field(gt=0, le=1024, allow_inf_nan=False, description="Width of the band; not with keep."),
    ] = 0.2

    def choose(self, scene: Scene) -> Choice:
        """Return the band, of the given decay or of the one that keeps the given share."""

        def make() -> Tensor:
            if scene.keep is None:
                return radial_mask(scene, self.decay)
            low, high = 2.0**-10, 2.0**10
            for _ in range(SEARCH):
                middle = (low * high) ** 0.5
                is_enough = float(radial_mask(scene, middle).float().mean()) >= scene.keep
                low, high = (low, middle) if is_enough else (middle, high)
            found = radial_mask(scene, high)
            return torch.ones_like(found) if scene.keep == 1 else found

        return Choice(remembered(scene, make))


def radial_mask(scene: Scene, decay: float) -> Bool[Tensor, "1 1 nq nk"]:
    """Return the pairs of blocks that hold a pair of frame pieces within the band."""
    per_frame = scene.grid[1] * scene.grid[2]
    frame_q, middle_q, table_q = _pieces(scene, scene.block_q)
    frame_k, middle_k, table_k = _pieces(scene, scene.block_k)
    t = (frame_q[:, None] - frame_k).abs()
    bits = torch.frexp(t.float()).exponent  # 0 for 0, 1 for 1, 2 for 2 and 3, ...
    undecayed = 2.0 ** (per_frame.bit_length() - bits.float())
    width = (undecayed * decay).clamp_min(scene.block_k)
    every = (scene.block_k / undecayed).ceil().clamp_min(1).long()
    sees = ((middle_q[:, None] - middle_k).abs() <= width) & (t % every == 0)
    sees = sees | (t <= 1) | (frame_k == 0)
    return (table_q @ sees.float() @ table_k.T > 0)[None, None]


def _pieces(scene: Scene, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut blocks where frames end: return frame and middle place of every piece, and the table of
    blocks and their pieces.
    """
    rows, columns = scene.grid[1:]
    slot = torch.arange(scene.places.shape[0], device=scene.places.device)
    is_picture = scene.places >= 0
    frame = scene.places[is_picture] // (rows * columns)
    place = (scene.places[is_picture] % (rows * columns)).float()
    number = slot[is_picture] // block
    pieces, piece = torch.unique(number * scene.grid[0] + frame, return_inverse=True)
    count = torch.zeros(len(pieces), device=place.device).index_add_(
        0, piece, torch.ones_like(place)
    )
    middle = torch.zeros_like(count).index_add_(0, piece, place) / count
    table = torch.zeros(-(-slot.shape[0] // block), len(pieces), device=place.device)
    table[pieces // scene.grid[0], torch.arange(len(pieces), device=place.device)] = 1.0
    return pieces % scene.grid[0], middle, table
