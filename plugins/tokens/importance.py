"""How much attention each token receives, measured with a few queries before attention runs.

p = softmax(q k^T / sqrt(d)) over the tokens,   importance_j = mean of p_ij over heads and queries i

with evenly spaced tokens as queries, projected by the module's own layers and normalised by its own
norms. It is what EViT calls attentiveness (there: the class token's attention) and ZipVL the
normalised attention score. Rotary positions are left out: they say where, not how important.

The projections are done again in the module; `renew` says how often that is paid.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["attention_received", "has_projections"]


def has_projections(module: Any) -> bool:
    """Say whether the module projects queries and keys in layers of its own, head by head."""
    return all(hasattr(module, part) for part in ("to_q", "to_k", "heads"))


def attention_received(
    module: Any, x: Float[Tensor, "b n c"], queries: int
) -> Float[Tensor, "b n"]:
    """Return the mean attention every token receives from `queries` tokens; sums to 1 per sample.

    Args:
        module: an attention module of diffusers' (`has_projections`).
    """
    n, heads = x.shape[1], module.heads
    count = min(queries, n)
    places = (2 * torch.arange(count, device=x.device) + 1) * n // (2 * count)
    q = _heads(module.to_q(x[:, places]), heads, getattr(module, "norm_q", None))
    k = _heads(module.to_k(x), heads, getattr(module, "norm_k", None))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return torch.softmax(scores.float(), dim=-1).mean((1, 2))


def _heads(x: Tensor, heads: int, norm: Any) -> Tensor:
    """Return [b, heads, n, d], normalised across or within heads as the norm's size asks for."""
    weight = getattr(norm, "weight", None)
    across = weight is not None and weight.numel() == x.shape[-1] != x.shape[-1] // heads
    if across:
        x = norm(x)
    split = x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)
    return split if norm is None or across else norm(split)
