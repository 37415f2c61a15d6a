"""ZPressor: keep a few anchor views and press what the others know into their tokens.

Wang et al. 2025 (arXiv:2505.23734). Anchors are picked by farthest point sampling on the cameras'
centres, the first one farthest from their barycentre; every other view supports its nearest anchor.
In each layer the tokens of anchor i ask those of its own supports, which stay as encoded:
  Z_i <- Z_i + Attention(Z_i, supports of i),   then attention and feed-forward among the anchors
Only the anchors are decoded. With V views of s tokens, K anchors, attention among K s + V s / K
tokens replaces that among V s; it loses what only supports see.

Differs from the authors' code: no weights of its own. The reconstructor's blocks ask anchors and
own supports in one masked attention call, where the authors train cross-attention layers before an
unchanged model. All clusters are one batch on any device, where theirs loop over clusters on CUDA.
"""

from typing import Annotated, Any, ClassVar

import pydantic
import torch
from jaxtyping import Bool, Float, Int
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.plugins.views.base import ViewPlugin, plainly

__all__ = ["ZPressor", "farthest_points", "press", "supports_of"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ZPressor(ViewPlugin):
    """Press many views into a few anchors."""

    name: ClassVar[str] = "zpressor"
    summary: ClassVar[str] = "Presses many views into a few anchors and fuses those."
    paper: ClassVar[str] = "ZPressor (arXiv:2505.23734)"
    many_views: ClassVar[bool] = True

    anchors: Annotated[int, Field(ge=2, le=16, description="K, the views that are kept.")] = 8

    def reconstruct(
        self,
        model: Any,
        pictures: Float[Tensor, "b v 4 height width"],
        w2c: Float[Tensor, "b v 4 4"],
        K: Float[Tensor, "b v 3 3"],
    ) -> tuple[Any, str]:
        """Encode all views, each compared with the anchors alone; fuse and decode the anchors.

        All scenes of a batch share the anchors of the first: they have the same rig of cameras.
        """
        v = pictures.shape[1]
        if v <= self.anchors:
            note = f"zpressor had nothing to press: {v} views."
            return plainly(model, pictures, w2c, K), note
        centres = -(w2c[0, :, :3, :3].mT @ w2c[0, :, :3, 3:])[..., 0]
        anchors = farthest_points(centres, self.anchors)
        supports, is_there = supports_of(centres, anchors)
        encoded = model.encode(pictures, w2c, K, others=compared_with(centres, anchors))
        tokens = press(model.transformer_blocks, encoded.tokens, anchors, supports, is_there)
        note = f"zpressor pressed {v} views into {len(anchors)} anchors."
        return model.decode(encoded[anchors], tokens), note


def farthest_points(centres: Float[Tensor, "v 3"], count: int) -> Int[Tensor, " k"]:
    """Pick `count` points, each farthest from those before; the first from the barycentre.

    >>> farthest_points(torch.tensor([[0.0, 0, 0], [1, 0, 0], [9, 0, 0], [4, 0, 0]]), 3).tolist()
    [2, 0, 3]
    """
    chosen = [int((centres - centres.mean(0)).norm(dim=-1).argmax())]
    distance = (centres - centres[chosen[0]]).norm(dim=-1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (centres - centres[chosen[-1]]).norm(dim=-1))
    return torch.tensor(chosen, device=centres.device)


def supports_of(
    centres: Float[Tensor, "v 3"], anchors: Int[Tensor, " k"]
) -> tuple[Int[Tensor, "k m"], Bool[Tensor, "k m"]]:
    """Return the views that support each anchor, padded to the largest cluster; is_there tells."""
    cluster = torch.cdist(centres, centres[anchors]).argmin(-1)
    cluster[anchors] = -1
    members = [(cluster == i).nonzero()[:, 0] for i in range(len(anchors))]
    most = max(len(group) for group in members)
    supports = torch.stack([torch.nn.functional.pad(g, (0, most - len(g))) for g in members])
    count = torch.tensor([len(group) for group in members], device=centres.device)
    return supports, torch.arange(most, device=centres.device) < count[:, None]


def compared_with(centres: Float[Tensor, "v 3"], anchors: Int[Tensor, " k"]) -> list[list[int]]:
    """Return for the r-th comparison the other view of every view: anchor r.

    An anchor is not compared with itself but with the nearest view that is no anchor.
    """
    distance = torch.cdist(centres, centres)
    distance[:, anchors] = torch.inf
    rows = anchors[:, None].repeat(1, len(centres))
    rows[torch.arange(len(anchors)), anchors] = distance[anchors].argmin(-1)
    compared: list[list[int]] = rows.tolist()
    return compared


def press(
    blocks: Any,
    tokens: Float[Tensor, "b v s d"],
    anchors: Int[Tensor, " k"],
    supports: Int[Tensor, "k m"],
    is_there: Bool[Tensor, "k m"],
) -> Float[Tensor, "b k s d"]:
    """Return the anchors' tokens after all blocks.

    In each block the queries of anchor i see the tokens of all anchors and of its own supports.
    """
    b, _, s, d = tokens.shape
    k, m = supports.shape
    x = tokens[:, anchors]  # [b, k, s, d]
    known = tokens[:, supports].flatten(2, 3)  # [b, k, m s, d]
    seen = torch.cat([is_there.new_ones(k, k), is_there], 1).repeat_interleave(s, 1)
    mask = torch.zeros(seen.shape, dtype=tokens.dtype, device=tokens.device)
    mask = mask.masked_fill(~seen, -torch.inf).repeat(b, 1)[:, None]  # [b k, 1, (k + m) s]
    for block in blocks:
        own = block.norm1(x)
        everyone = own.reshape(b, 1, k * s, d).expand(b, k, k * s, d)
        context = torch.cat([everyone, block.norm1(known)], 2).flatten(0, 1)
        attended = block.attn1(
            own.flatten(0, 1), encoder_hidden_states=context, attention_mask=mask
        )
        x = x + attended.reshape(x.shape)
        x = x + block.ff(block.norm3(x))
    return x
