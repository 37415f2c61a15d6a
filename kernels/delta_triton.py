"""Triton kernel of `skipstep.kernels.delta`: shift a group of rows by its anchor's difference."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from skipstep.kernels.dispatch import next_power_of_2

__all__ = ["shift_groups_kernel", "shift_groups_triton"]

ROWS = 32


@triton.jit
@no_type_check
def shift_groups_kernel(
    X,
    DELTA,
    OUT,
    stride_b,
    stride_h,
    stride_s,
    stride_d,
    H,
    S,
    G,
    STRIDE,
    D: tl.constexpr,
    BD: tl.constexpr,
    ROWS: tl.constexpr,
):
    # out_i = x_i + delta_{i // STRIDE}
    i_s = tl.program_id(0)
    i_bh = tl.program_id(1).to(tl.int64)
    o_s = i_s * ROWS + tl.arange(0, ROWS)
    o_d = tl.arange(0, BD)
    m_x = (o_s < S)[:, None] & (o_d < D)[None, :]
    o_wide = o_s.to(tl.int64)[:, None]
    p_x = X + (i_bh // H) * stride_b + (i_bh % H) * stride_h + o_wide * stride_s
    b_x = tl.load(p_x + o_d[None, :] * stride_d, mask=m_x, other=0.0).to(tl.float32)
    o_delta = (i_bh * G + (o_s // STRIDE)[:, None]) * D + o_d[None, :]
    b_delta = tl.load(DELTA + o_delta, mask=m_x, other=0.0)
    b_out = (b_x + b_delta).to(OUT.dtype.element_ty)
    tl.store(OUT + (i_bh * S + o_wide) * D + o_d[None, :], b_out, mask=m_x)


def shift_groups_triton(x: Tensor, delta: Tensor, stride: int) -> Tensor:
    """Launch the kernel; `delta` is fp32 [b, h, groups, d]."""
    b, h, s, d = x.shape
    out = torch.empty(b, h, s, d, device=x.device, dtype=x.dtype)
    shift_groups_kernel[(triton.cdiv(s, ROWS), b * h)](
        x,
        delta.contiguous(),
        out,
        *x.stride(),
        h,
        s,
        delta.shape[2],
        stride,
        D=d,
        BD=next_power_of_2(d),
        ROWS=ROWS,
        num_warps=4,
    )
    return out
