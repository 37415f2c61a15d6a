"""Attention as two products and a softmax, for training on a CPU.

  O = softmax(Q K' / sqrt(d) + mask) V
torch's fused attention saves memory, which a few hundred tokens do not need; its backward pass on a
CPU in bfloat16 takes twice the time of these products (256 tokens, 64 channels).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["attend", "plain_attention"]


def attend(
    query: Float[Tensor, "b h s d"],
    key: Float[Tensor, "b h t d"],
    value: Float[Tensor, "b h t d"],
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "b h s d"]:
    """Return what `scaled_dot_product_attention` returns, for what the reference models ask of it.

    Raises ValueError for dropout, causal masks and grouped heads.
    """
    if dropout_p or is_causal or enable_gqa:
        raise ValueError(
            "plain attention knows no dropout, causal mask or grouped heads: train without it"
        )
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-1, -2)  # [b, h, s, t]
    if attn_mask is not None:
        is_kept = attn_mask.dtype == torch.bool
        scores = (
            scores.masked_fill(~attn_mask, -math.inf)
            if is_kept
            else scores + attn_mask.to(scores.dtype)
        )
    return scores.softmax(-1) @ value


@contextmanager
def plain_attention(enabled: bool = True) -> Iterator[None]:
    """Let every model called inside attend this way; the fused attention is back afterwards."""
    fused: Any = F.scaled_dot_product_attention
    if enabled:
        F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused
