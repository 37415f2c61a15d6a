"""A weighted sum of tensors in as few passes over them as torch offers."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

__all__ = ["combined"]


def combined(
    weight: float, first: Tensor, weights: Sequence[float], others: Sequence[Tensor]
) -> Tensor:
    """Return weight * first + sum of weights[j] * others[j]; terms of weight 0 are not touched.

    Weights that sum to 1, as on a flow, make a chain of means, each one pass over two tensors; a
    scaled copy that the others are added to is one pass more.
    """
    terms = [(w, t) for w, t in zip((weight, *weights), (first, *others), strict=False) if w != 0]
    if not terms:
        return torch.zeros_like(first)
    if len(terms) > 1 and is_chain_of_means([w for w, _ in terms]):
        (w, total), (v, t), *rest = terms
        total = torch.lerp(total, t, v / (w + v))
        reached = w + v
        for w, t in rest:
            reached += w
            total.lerp_(t, w / reached)
        return total
    (w, total), *rest = terms
    if w == 1 and rest:
        (v, t), *rest = rest
        total = torch.add(total, t, alpha=v)
    else:
        total = total * w if w != 1 else total.clone()
    for w, t in rest:
        total.add_(t, alpha=w)
    return total


def is_chain_of_means(weights: Sequence[float]) -> bool:
    """Tell whether weights sum to 1 and no partial sum is small beside them, so that dividing by it
    loses nothing.
    """
    partial = list(accumulate(weights))
    small = 0.1 * max(abs(w) for w in weights)
    return abs(partial[-1] - 1) < 1e-9 and min(abs(each) for each in partial) > small
