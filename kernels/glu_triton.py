"""Triton kernel of `skipstep.kernels.glu`: two reads and one write per number."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["glu_kernel", "glu_triton"]

TILE = 1024


@triton.jit
@no_type_check
def glu_kernel(X, OUT, D, ACTIVATION: tl.constexpr, TILE: tl.constexpr):
    # out = a * act(b)
    i_row = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * TILE + tl.arange(0, TILE)
    m_d = o_d < D
    b_a = tl.load(X + i_row * 2 * D + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_b = tl.load(X + (i_row * 2 + 1) * D + o_d, mask=m_d, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        b_gate = b_b * tl.sigmoid(b_b)
    elif ACTIVATION == "gelu_tanh":
        # gelu_tanh(b) = b sigmoid(2 sqrt(2 / pi) (b + 0.044715 b^3))
        b_gate = b_b * tl.sigmoid(1.5957691216057308 * (b_b + 0.044715 * b_b * b_b * b_b))
    else:
        b_gate = 0.5 * b_b * (1.0 + tl.math.erf(b_b * 0.7071067811865476))
    tl.store(OUT + i_row * D + o_d, (b_a * b_gate).to(OUT.dtype.element_ty), mask=m_d)


def glu_triton(x: Tensor, activation: str) -> Tensor:
    """Launch the kernel."""
    d = x.shape[-1] // 2
    x = x.contiguous()
    out = torch.empty(*x.shape[:-1], d, device=x.device, dtype=x.dtype)
    rows = x.numel() // (2 * d)
    glu_kernel[(rows, triton.cdiv(d, TILE))](x, out, d, ACTIVATION=activation, TILE=TILE)
    return out
