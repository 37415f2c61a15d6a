"""Triton kernel of `skipstep.kernels.block_pool`: one program reads one block once."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from skipstep.kernels.dispatch import next_power_of_2

__all__ = ["block_stats_kernel", "block_stats_triton"]

ROWS = 32


@triton.jit
@no_type_check
def block_stats_kernel(
    X,
    VALID,
    MEAN,
    SIMILARITY,
    LARGEST,
    stride_b,
    stride_h,
    stride_s,
    stride_d,
    H,
    S,
    N,
    BLOCK,
    D: tl.constexpr,
    BD: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_VALID: tl.constexpr,
    MEAN_ONLY: tl.constexpr,
):
    # mean = sum_i x_i / n;  similarity = |sum_i x_i / |x_i||^2 / n^2;  largest = max |x_ic|
    i_n = tl.program_id(0)
    i_bh = tl.program_id(1).to(tl.int64)
    p_x = X + (i_bh // H) * stride_b + (i_bh % H) * stride_h
    count = tl.minimum(S - i_n * BLOCK, BLOCK)
    if HAS_VALID:
        count = tl.minimum(count, tl.load(VALID + i_n).to(tl.int32))
    o_d = tl.arange(0, BD)
    b_sum = tl.zeros([BD], tl.float32)
    b_direction = tl.zeros([BD], tl.float32)
    b_largest = tl.zeros([BD], tl.float32)
    for start in range(0, count, ROWS):
        o_r = start + tl.arange(0, ROWS)
        m_x = (o_r < count)[:, None] & (o_d < D)[None, :]
        o_s = (i_n * BLOCK + o_r).to(tl.int64)
        p_tile = p_x + o_s[:, None] * stride_s + o_d[None, :] * stride_d
        b_x = tl.load(p_tile, mask=m_x, other=0.0).to(tl.float32)
        b_sum += tl.sum(b_x, 0)
        if not MEAN_ONLY:
            b_length = tl.sqrt(tl.sum(b_x * b_x, 1))
            b_length = tl.where(b_length > 0, b_length, 1.0)
            b_direction += tl.sum(b_x / b_length[:, None], 0)
            b_largest = tl.maximum(b_largest, tl.max(tl.abs(b_x), 0))
    n = tl.maximum(count, 1).to(tl.float32)
    o_out = i_bh * N + i_n
    tl.store(MEAN + o_out * D + o_d, b_sum / n, mask=o_d < D)
    if not MEAN_ONLY:
        tl.store(SIMILARITY + o_out, tl.sum(b_direction * b_direction, 0) / (n * n))
        tl.store(LARGEST + o_out, tl.max(b_largest, 0))


def block_stats_triton(
    x: Tensor, block: int, valid: Tensor | None, mean_only: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernel; similarity and largest are empty with `mean_only`."""
    b, h, s, d = x.shape
    n = -(-s // block)
    mean = torch.empty(b, h, n, d, device=x.device, dtype=torch.float32)
    rest = 0 if mean_only else n
    similarity = torch.empty(b, h, rest, device=x.device, dtype=torch.float32)
    largest = torch.empty(b, h, rest, device=x.device, dtype=torch.float32)
    block_stats_kernel[(n, b * h)](
        x,
        mean if valid is None else valid,
        mean,
        similarity,
        largest,
        *x.stride(),
        h,
        s,
        n,
        block,
        D=d,
        BD=next_power_of_2(d),
        ROWS=ROWS,
        HAS_VALID=valid is not None,
        MEAN_ONLY=mean_only,
        num_warps=4,
    )
    return mean, similarity, largest
