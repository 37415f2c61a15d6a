"""Weighted sum of k tensors: what every linear forecaster evaluates.

out_b = sum_j w_j[b] * F_j[b], accumulated in fp32 (fp64 for fp64 tensors) and rounded once to the
tensors' type, so that a forecast from bf16 anchors loses one rounding and not one per term.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["weighted_sum", "weighted_sum_ref"]


def weighted_sum_ref(
    tensors: Sequence[Float[Tensor, "b ..."]], weights: Float[Tensor, " k"] | Float[Tensor, "k b"]
) -> Float[Tensor, "b ..."]:
    """Return sum_j weights[j] * tensors[j] for weights [k] or [k, b] (per tensor and sample)."""
    first = tensors[0]
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    shape = (-1, *([1] * (first.ndim - 1)))
    total = torch.zeros_like(first, dtype=wide)
    for j, tensor in enumerate(tensors):
        if weights.ndim == 1:
            total = total.add(tensor.to(wide), alpha=float(weights[j]))
        else:
            w = weights[j].to(device=first.device, dtype=wide).reshape(shape)
            total = total.addcmul(tensor.to(wide), w)
    return total.to(first.dtype)


def weighted_sum(
    tensors: Sequence[Float[Tensor, "b ..."]],
    weights: Float[Tensor, " k"]
    | Float[Tensor, "k b"]
    | Sequence[float]
    | Sequence[Sequence[float]],
) -> Float[Tensor, "b ..."]:
    """Return sum_j weights[j] * tensors[j] as a new tensor of the tensors' type.

    `weights` is [k], one number per tensor, or [k, b], one per tensor and sample. Host numbers are
    best: they cost no tensor and no copy, and a device tensor of shape [k] costs a synchronisation.
    Raises ValueError on shapes or counts that do not fit.

    >>> weighted_sum([torch.ones(2, 2), torch.ones(2, 2)], [[2.0, 3.0], [-1.0, 0.0]])
    tensor([[1., 1.],
            [3., 3.]])
    """
    if not tensors:
        raise ValueError("weighted_sum was given no tensors: at least one is needed")
    first = tensors[0]
    for tensor in tensors:
        if tensor.shape != first.shape or tensor.dtype != first.dtype:
            raise ValueError(
                f"weighted_sum was given {tensor.dtype} {tuple(tensor.shape)} beside {first.dtype} "
                f"{tuple(first.shape)}: all tensors must share one type and shape"
            )
    if len(weights) == len(tensors) and all(isinstance(w, float) for w in weights):
        return _sum_by_numbers(tensors, cast(Sequence[float], weights))
    table = weights if isinstance(weights, Tensor) else torch.tensor(weights, dtype=torch.float64)
    allowed = [(len(tensors),)] + ([(len(tensors), first.shape[0])] if first.ndim else [])
    if tuple(table.shape) not in allowed:
        shapes = " or ".join(str(list(shape)) for shape in allowed)
        raise ValueError(
            f"weighted_sum was given weights of shape {tuple(table.shape)} for {len(tensors)} "
            f"tensors of shape {tuple(first.shape)}: allowed are {shapes}"
        )
    return weighted_sum_ref(tensors, table)


def _sum_by_numbers(
    tensors: Sequence[Float[Tensor, "b ..."]], weights: Sequence[float]
) -> Float[Tensor, "b ..."]:
    """Add up in one buffer of our own."""
    first = tensors[0]
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    total = first.to(wide) * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor.to(wide), alpha=weight)
    return total.to(first.dtype)
