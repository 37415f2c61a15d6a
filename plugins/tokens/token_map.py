"""Which of N tokens share a slot of a shorter sequence, and the two ways through such a map.

x'_s = sum of w_i x_i over the tokens i with slot s     the weights of a slot sum to 1
y_i  = y'_(slot of i)                                   every token gets its slot's answer

A map in which every token has its own slot is the identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from skipstep.kernels.permute import gather_tokens

__all__ = ["TokenMap", "keep_and_fuse", "reduce_tokens", "restore_tokens", "stack"]


@dataclass(frozen=True)
class TokenMap:
    """Map the tokens of one sample, or of a batch of samples with equally many slots.

    Args:
        slots: the slot of each token.
        weights: each token's share in its slot, in fp32.
        places: the token whose position in the picture each slot takes.
    """

    slots: Int[Tensor, "*b n"]
    weights: Float[Tensor, "*b n"]
    places: Int[Tensor, "*b m"]

    @property
    def count(self) -> int:
        """Number of slots."""
        return self.places.shape[-1]


def stack(maps: Sequence[TokenMap]) -> TokenMap:
    """Return the maps of several samples as one; all have the same number of slots."""
    return TokenMap(
        slots=torch.stack([one.slots for one in maps]),
        weights=torch.stack([one.weights for one in maps]),
        places=torch.stack([one.places for one in maps]),
    )


def reduce_tokens(x: Float[Tensor, "b n c"], map_: TokenMap) -> Float[Tensor, "b m c"]:
    """Return the slots' contents, summed in fp32 (fp64 for fp64 tokens).

    >>> pairs = TokenMap(torch.tensor([[0, 0, 1]]), torch.tensor([[0.5, 0.5, 1.0]]),
    ...     torch.tensor([[0, 2]]))
    >>> reduce_tokens(torch.tensor([[[1.0], [3.0], [5.0]]]), pairs).flatten()
    tensor([2., 5.])
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    out = x.new_zeros(len(x), map_.count, x.shape[2], dtype=wide)
    shares = x.to(wide) * map_.weights[..., None]
    return out.scatter_add_(1, map_.slots[..., None].expand_as(x), shares).to(x.dtype)


def restore_tokens(y: Float[Tensor, "b m c"], map_: TokenMap) -> Float[Tensor, "b n c"]:
    """Return every token's answer.

    >>> pairs = TokenMap(torch.tensor([[0, 0, 1]]), torch.tensor([[0.5, 0.5, 1.0]]),
    ...     torch.tensor([[0, 2]]))
    >>> restore_tokens(torch.tensor([[[2.0], [5.0]]]), pairs).flatten()
    tensor([2., 2., 5.])
    """
    return gather_tokens(y[:, None], map_.slots[:, None])[:, 0]


def keep_and_fuse(
    importance: Float[Tensor, " n"], count: int, among: Bool[Tensor, " n"] | None = None
) -> TokenMap:
    """Keep the `count` most important tokens and fuse all others into one more slot.

    The others are weighted by their importance, and their slot stands where the first of them in
    the ranking does.

    Args:
        importance: of each token, not negative.
        among: the tokens that may be kept, at least `count`; None means all.

    >>> keep_and_fuse(torch.tensor([0.1, 0.5, 0.3, 0.1]), 2).slots
    tensor([2, 0, 1, 2])
    """
    n = len(importance)
    ranked = importance if among is None else importance.where(among, -1.0)
    order = ranked.argsort(descending=True, stable=True)
    kept = order[:count].sort().values
    slots = torch.full((n,), count, device=importance.device)
    slots[kept] = torch.arange(count, device=importance.device)
    weights = torch.ones_like(importance, dtype=torch.float32)
    if count == n:
        return TokenMap(slots, weights, kept)
    fused = order[count:]
    shares = importance[fused].float()
    # Tokens that nobody looks at are fused in equal parts.
    shares = torch.where(shares.sum() > 0, shares, torch.ones_like(shares))
    weights[fused] = shares / shares.sum()
    return TokenMap(slots, weights, torch.cat([kept, fused[:1]]))
