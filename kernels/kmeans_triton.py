"""Triton kernels of `skipstep.kernels.kmeans`: assignment by tiles, means without atomics."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from skipstep.kernels.dispatch import next_power_of_2

__all__ = ["assign_kernel", "assign_triton", "mean_kernel", "mean_triton"]

TILE = 64
ROWS = 32


@triton.jit
@no_type_check
def assign_kernel(
    X,
    C,
    IDS,
    stride_n,
    stride_s,
    stride_d,
    S,
    K,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    UPCAST_DOT: tl.constexpr,
):
    # id_i = argmin_j |c_j|^2 - 2 x_i . c_j, the first one where several are as near
    i_m = tl.program_id(0)
    i_n = tl.program_id(1).to(tl.int64)
    o_m = i_m * BM + tl.arange(0, BM)
    o_d = tl.arange(0, BD)
    p_x = X + i_n * stride_n + o_m.to(tl.int64)[:, None] * stride_s + o_d[None, :] * stride_d
    b_x = tl.load(p_x, mask=(o_m < S)[:, None] & (o_d < D)[None, :], other=0.0)
    if UPCAST_DOT:
        b_x = b_x.to(tl.float32)
    b_best = tl.full([BM], float("inf"), tl.float32)
    b_id = tl.zeros([BM], tl.int32)
    for start in range(0, K, BK):
        o_k = start + tl.arange(0, BK)
        p_c = C + (i_n * K + o_k.to(tl.int64)[None, :]) * D + o_d[:, None]
        b_c = tl.load(p_c, mask=(o_k < K)[None, :] & (o_d < D)[:, None], other=0.0)
        b_wide = b_c.to(tl.float32)
        if UPCAST_DOT:
            b_c = b_wide
        b_dot = tl.dot(b_x, b_c, input_precision="ieee")
        b_far = tl.sum(b_wide * b_wide, 0)[None, :] - 2 * b_dot
        b_far = tl.where((o_k < K)[None, :], b_far, float("inf"))
        b_near = tl.min(b_far, 1)
        b_here = start + tl.argmin(b_far, 1)
        b_id = tl.where(b_near < b_best, b_here, b_id)
        b_best = tl.minimum(b_near, b_best)
    tl.store(IDS + i_n * S + o_m, b_id, mask=o_m < S)


@triton.jit
@no_type_check
def mean_kernel(
    X,
    MEMBERS,
    ENDS,
    BEFORE,
    OUT,
    stride_n,
    stride_s,
    stride_d,
    S,
    K,
    D: tl.constexpr,
    BD: tl.constexpr,
    ROWS: tl.constexpr,
):
    # c_j = mean of the tokens MEMBERS[ENDS[j-1] : ENDS[j]], or what it was if there are none
    i_k = tl.program_id(0)
    i_n = tl.program_id(1).to(tl.int64)
    end = tl.load(ENDS + i_n * K + i_k).to(tl.int32)
    begin = tl.load(ENDS + i_n * K + i_k - 1, mask=i_k > 0, other=0).to(tl.int32)
    o_d = tl.arange(0, BD)
    b_sum = tl.zeros([BD], tl.float32)
    for start in range(begin, end, ROWS):
        o_r = start + tl.arange(0, ROWS)
        b_member = tl.load(MEMBERS + i_n * S + o_r, mask=o_r < end, other=0).to(tl.int64)
        p_x = X + i_n * stride_n + b_member[:, None] * stride_s + o_d[None, :] * stride_d
        b_x = tl.load(p_x, mask=(o_r < end)[:, None] & (o_d < D)[None, :], other=0.0)
        b_sum += tl.sum(b_x.to(tl.float32), 0)
    o_out = (i_n * K + i_k) * D + o_d
    b_before = tl.load(BEFORE + o_out, mask=o_d < D, other=0.0)
    b_mean = b_sum / tl.maximum(end - begin, 1).to(tl.float32)
    tl.store(OUT + o_out, tl.where(end > begin, b_mean, b_before), mask=o_d < D)


def assign_triton(x: Tensor, centroids: Tensor, upcast_dot: bool) -> Tensor:
    """Launch the assignment; the centroids have the type of `x`."""
    n, s, d = x.shape
    k = centroids.shape[1]
    ids = torch.empty(n, s, device=x.device, dtype=torch.int32)
    assign_kernel[(triton.cdiv(s, TILE), n)](
        x,
        centroids.contiguous(),
        ids,
        *x.stride(),
        s,
        k,
        D=d,
        BD=max(16, next_power_of_2(d)),
        BM=TILE,
        BK=TILE,
        UPCAST_DOT=upcast_dot,
        num_warps=4,
        num_stages=2,
    )
    return ids


def mean_triton(x: Tensor, ids: Tensor, sizes: Tensor, before: Tensor) -> Tensor:
    """Launch the means: each program walks through the members of one cluster in their order."""
    n, s, d = x.shape
    k = before.shape[1]
    members = ids.argsort(dim=1, stable=True).to(torch.int32)
    ends = sizes.cumsum(1, dtype=torch.int32)
    out = torch.empty_like(before, memory_format=torch.contiguous_format)
    mean_kernel[(k, n)](
        x,
        members,
        ends,
        before.contiguous(),
        out,
        *x.stride(),
        s,
        k,
        D=d,
        BD=next_power_of_2(d),
        ROWS=ROWS,
        num_warps=4,
    )
    return out
