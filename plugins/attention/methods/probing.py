"""Exact attention of a few queries: what methods that choose a pattern per head look at.

Queries are evenly spaced, so the same call chooses the same pattern every time.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from skipstep.plugins.attention.methods.base import Scene

__all__ = ["attention_of", "block_sums", "held_by", "probe_places"]


def probe_places(n: int, count: int, device: torch.device) -> Int[Tensor, " r"]:
    """Return `count` evenly spaced places among n, the middles of as many equal parts.

    >>> probe_places(8, 2, torch.device("cpu")).tolist()
    [2, 6]
    """
    count = min(count, n)
    return (torch.arange(count, device=device) * 2 + 1) * n // (2 * count)


def attention_of(scene: Scene, rows: Int[Tensor, " r"]) -> Float[Tensor, "b h r n"]:
    """Return the exact attention of these queries over all keys, in fp32."""
    logits = (scene.q[:, :, rows] @ scene.k.mT).float() * scene.scale
    return logits.softmax(-1)


def block_sums(attention: Float[Tensor, "b h r n"], block: int) -> Float[Tensor, "b h r blocks"]:
    """Return how much of each row lies in each key block."""
    padded = torch.nn.functional.pad(attention, (0, -attention.shape[-1] % block))
    found: Tensor = padded.reshape(*padded.shape[:-1], -1, block).sum(-1)
    return found


def held_by(
    mask: Bool[Tensor, "#b #h nq nk"],
    sums: Float[Tensor, "b h r nk"],
    rows: Int[Tensor, " r"],
    block_q: int,
) -> Float[Tensor, "b h"]:
    """Return the share of the probed attention that a mask keeps, per sample and head."""
    return sums.where(mask[:, :, rows // block_q], 0).sum(-1).mean(-1)
