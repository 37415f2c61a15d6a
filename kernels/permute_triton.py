"""Triton kernel of `skipstep.kernels.permute`: rows of any type, moved once."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from skipstep.kernels.dispatch import next_power_of_2

__all__ = ["gather_kernel", "gather_triton"]

ROWS = 64


@triton.jit
@no_type_check
def gather_kernel(
    X,
    ORDER,
    OUT,
    stride_b,
    stride_h,
    stride_s,
    stride_d,
    stride_ob,
    stride_oh,
    H,
    N,
    D: tl.constexpr,
    BD: tl.constexpr,
    ROWS: tl.constexpr,
):
    # out_i = x_order(i), 0 where order(i) < 0
    i_n = tl.program_id(0)
    i_bh = tl.program_id(1).to(tl.int64)
    i_b, i_h = i_bh // H, i_bh % H
    o_n = i_n * ROWS + tl.arange(0, ROWS)
    o_d = tl.arange(0, BD)
    p_order = ORDER + i_b * stride_ob + i_h * stride_oh + o_n
    b_order = tl.load(p_order, mask=o_n < N, other=-1).to(tl.int64)
    m_x = (b_order >= 0)[:, None] & (o_d < D)[None, :]
    p_x = X + i_b * stride_b + i_h * stride_h + b_order[:, None] * stride_s
    b_x = tl.load(p_x + o_d[None, :] * stride_d, mask=m_x, other=0)
    p_out = OUT + (i_bh * N + o_n.to(tl.int64)[:, None]) * D + o_d[None, :]
    tl.store(p_out, b_x, mask=(o_n < N)[:, None] & (o_d < D)[None, :])


def gather_triton(x: Tensor, order: Tensor) -> Tensor:
    """Launch the kernel; `order` is [n] or [b, h, n]."""
    b, h, _, d = x.shape
    n = order.shape[-1]
    order = order.contiguous()
    out = torch.empty(b, h, n, d, device=x.device, dtype=x.dtype)
    gather_kernel[(triton.cdiv(n, ROWS), b * h)](
        x,
        order,
        out,
        *x.stride(),
        *(order.stride()[:2] if order.ndim == 3 else (0, 0)),
        h,
        n,
        D=d,
        BD=next_power_of_2(d),
        ROWS=ROWS,
        num_warps=4,
    )
    return out
