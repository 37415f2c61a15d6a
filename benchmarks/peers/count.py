"""Count FLOPs the same way for everybody: at every matrix operation that Python asks torch for.

Patched forwards, swapped block lists and hooks all end in the same few functions, so a peer cannot
hide its work; only compiled code does not pass here. torch's FlopCounterMode counts the same (a
test compares them) one level deeper, and takes as long again as a small model itself.

  linear 2 m k n,   attention 4 b h q k d,   convolution 2 (output values) (inputs of one)
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["FlopCount", "denoiser_share"]


def product(out: Any, a: Any, b: Any, *_: Any, **__: Any) -> int:
    """Count a matrix product."""
    return 2 * int(out.numel()) * int(a.shape[-1])


def product_and_sum(out: Any, bias: Any, a: Any, b: Any, *_: Any, **__: Any) -> int:
    """Count a matrix product that is added to something."""
    return 2 * int(out.numel()) * int(a.shape[-1])


def linear(out: Any, input: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Count a linear layer."""
    return 2 * int(out.numel()) * int(weight.shape[-1])


def attention(out: Any, query: Any, key: Any, *_: Any, **__: Any) -> int:
    """Count scaled dot-product attention whose values are as wide as its keys."""
    return 4 * int(query.numel()) * int(key.shape[-2])


def convolution(out: Any, input: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Count a convolution."""
    inputs: int = math.prod(weight.shape[1:])
    return 2 * int(out.numel()) * inputs


FORMULAS: dict[Any, Callable[..., int]] = {
    functional.linear: linear,
    functional.scaled_dot_product_attention: attention,
    functional.conv1d: convolution,
    functional.conv2d: convolution,
    functional.conv3d: convolution,
    torch.matmul: product,
    torch.mm: product,
    torch.bmm: product,
    torch.Tensor.matmul: product,
    torch.Tensor.__matmul__: product,
    torch.Tensor.mm: product,
    torch.Tensor.bmm: product,
    torch.addmm: product_and_sum,
    torch.baddbmm: product_and_sum,
}


class FlopCount(TorchFunctionMode):
    """Add up the FLOPs of everything that runs inside `with`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one function and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = FORMULAS.get(func)
        if formula is not None:
            self.total += formula(out, *args, **kwargs)
        return out


def denoiser_share(total: float, *, full: float, fewer: float, steps: int, less: int) -> float:
    """Return which share of the denoiser's FLOPs of an uncached call a call of `total` FLOPs did.

    A call of n uncached steps costs a + n b: text encoder and decoder, and n denoiser steps. Two
    uncached calls, `full` with `steps` steps and `fewer` with `less`, give a and b.

    >>> denoiser_share(60, full=110, fewer=60, steps=10, less=5)
    0.5
    """
    b = (full - fewer) / (steps - less)
    a = full - steps * b
    return (total - a) / (steps * b)
