"""From scores of block pairs to kept blocks: by a share of the blocks, or by a share of the mass.

Blocks of text compete like any other; the caller keeps them whether they win or not.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skipstep.kernels.block_layout import from_topk, from_topp

__all__ = ["keep_best", "pooled_scores", "top_mass", "top_share"]


def top_share(scores: Float[Tensor, "b h nq nk"], share: float) -> Bool[Tensor, "b h nq nk"]:
    """Keep round(share * nk) blocks of every row, those with the highest scores; at least one.

    >>> top_share(torch.tensor([[[[0.1, 0.6, 0.3, 0.0]]]]), 0.5).tolist()
    [[[[False, True, True, False]]]]
    """
    return from_topk(scores, max(1, round(share * scores.shape[-1]))).to_bool()


def top_mass(
    scores: Float[Tensor, "b h nq nk"], mass: float, min_keep: int = 1
) -> Bool[Tensor, "b h nq nk"]:
    """Keep the fewest blocks of every row that hold `mass` of its sum, the crossing one included.

    >>> top_mass(torch.tensor([[[[0.1, 0.6, 0.3, 0.0]]]]), 0.85).tolist()
    [[[[False, True, True, False]]]]
    """
    return from_topp(scores, mass, min_keep=min_keep).to_bool()


def keep_best(
    scores: Float[Tensor, "b h nq nk"], keep: float | None, mass: float | None
) -> Bool[Tensor, "b h nq nk"]:
    """Keep by the budget that is given; scores are not negative."""
    return top_mass(scores, mass) if mass is not None else top_share(scores, keep or 1.0)


def pooled_scores(
    q_mean: Float[Tensor, "b h nq d"], k_mean: Float[Tensor, "b g nk d"], scale: float
) -> Float[Tensor, "b h nq nk"]:
    """Return softmax over key blocks of the scaled products of block means, in fp32."""
    k_mean = k_mean.repeat_interleave(q_mean.shape[1] // k_mean.shape[1], dim=1)
    return torch.softmax(q_mean.float() @ k_mean.float().mT * scale, dim=-1)
