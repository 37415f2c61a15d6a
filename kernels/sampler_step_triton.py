"""Triton kernel of `skipstep.kernels.sampler_step`: every tensor is read once."""

from collections.abc import Sequence
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["linear_step_kernel", "linear_step_triton"]

TILE = 1024
MOST = 8


@triton.jit
@no_type_check
def linear_step_kernel(
    X0, X1, X2, X3, X4, X5, X6, X7, C0, C1, C2, C3, C4, C5, C6, C7, OUT, SIZE,
    COUNT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # out = sum_{j < COUNT} c_j x_j
    o = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    m = o < SIZE
    b_out = C0 * tl.load(X0 + o, mask=m, other=0.0).to(tl.float32)
    if COUNT > 1:
        b_out += C1 * tl.load(X1 + o, mask=m, other=0.0).to(tl.float32)
    if COUNT > 2:
        b_out += C2 * tl.load(X2 + o, mask=m, other=0.0).to(tl.float32)
    if COUNT > 3:
        b_out += C3 * tl.load(X3 + o, mask=m, other=0.0).to(tl.float32)
    if COUNT > 4:
        b_out += C4 * tl.load(X4 + o, mask=m, other=0.0).to(tl.float32)
    if COUNT > 5:
        b_out += C5 * tl.load(X5 + o, mask=m, other=0.0).to(tl.float32)
    if COUNT > 6:
        b_out += C6 * tl.load(X6 + o, mask=m, other=0.0).to(tl.float32)
    if COUNT > 7:
        b_out += C7 * tl.load(X7 + o, mask=m, other=0.0).to(tl.float32)
    tl.store(OUT + o, b_out.to(OUT.dtype.element_ty), mask=m)


def linear_step_triton(tensors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """Launch the kernel on at most `MOST` tensors."""
    whole = [tensor.contiguous() for tensor in tensors]
    missing = MOST - len(whole)
    factors = [float(c) for c in coefficients] + [0.0] * missing
    out = torch.empty(whole[0].shape, device=whole[0].device, dtype=whole[0].dtype)
    size = out.numel()
    linear_step_kernel[(triton.cdiv(size, TILE),)](
        *whole,
        *[whole[0]] * missing,
        *factors,
        out,
        size,
        COUNT=len(whole),
        TILE=TILE,
    )
    return out
