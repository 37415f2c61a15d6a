"""Triton kernel of `skipstep.kernels.block_scores`: the thinned matrix never exists in memory."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from skipstep.kernels.dispatch import next_power_of_2

__all__ = ["pooled_softmax_kernel", "pooled_softmax_triton"]

TILE = 64
LOG2_E = 1.4426950408889634


@triton.jit
@no_type_check
def thinned(
    p_q,
    p_k,
    o_m,
    o_n,
    stride_qs,
    stride_qd,
    stride_ks,
    stride_kd,
    S,
    T,
    scale,
    STRIDE: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    UPCAST_DOT: tl.constexpr,
):
    # a_gh = scale * sum_{i<STRIDE} q_{g STRIDE + STRIDE - 1 - i} . k_{h STRIDE + i}
    o_d = tl.arange(0, BD)
    b_a = tl.zeros([BM, BN], tl.float32)
    for i in range(STRIDE):
        o_q = (o_m * STRIDE + STRIDE - 1 - i).to(tl.int64)
        o_k = (o_n * STRIDE + i).to(tl.int64)
        m_q = (o_q < S)[:, None] & (o_d < D)[None, :]
        m_k = (o_k < T)[None, :] & (o_d < D)[:, None]
        b_q = tl.load(
            p_q + o_q[:, None] * stride_qs + o_d[None, :] * stride_qd, mask=m_q, other=0.0
        )
        b_k = tl.load(
            p_k + o_k[None, :] * stride_ks + o_d[:, None] * stride_kd, mask=m_k, other=0.0
        )
        if UPCAST_DOT:
            b_q = b_q.to(tl.float32)
            b_k = b_k.to(tl.float32)
        b_a = tl.dot(b_q, b_k, b_a, input_precision="ieee")
    return tl.where((o_n * STRIDE < T)[None, :], b_a * scale, -float("inf"))


@triton.jit
@no_type_check
def pooled_softmax_kernel(
    Q,
    K,
    OUT,
    stride_qb,
    stride_qh,
    stride_qs,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_ks,
    stride_kd,
    H,
    G,
    S,
    T,
    ROWS,
    COLUMNS,
    N,
    M,
    scale,
    STRIDE: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    CELL_Q: tl.constexpr,
    CELL_K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    LARGEST: tl.constexpr,
    UPCAST_DOT: tl.constexpr,
):
    # out_nm = mean over rows of sum over columns of softmax(a) in cell (n, m), or its largest entry
    i_m = tl.program_id(0)
    i_bh = tl.program_id(1).to(tl.int64)
    i_h = i_bh % H
    p_q = Q + (i_bh // H) * stride_qb + i_h * stride_qh
    p_k = K + (i_bh // H) * stride_kb + (i_h * G // H) * stride_kh
    o_m = i_m * BM + tl.arange(0, BM)
    b_m = tl.full([BM], -float("inf"), tl.float32)
    b_l = tl.zeros([BM], tl.float32)
    for start in range(0, COLUMNS, BN):
        o_n = start + tl.arange(0, BN)
        b_a = thinned(
            p_q, p_k, o_m, o_n, stride_qs, stride_qd, stride_ks, stride_kd, S, T, scale,
            STRIDE, D, BD, BM, BN, UPCAST_DOT,
        )  # fmt: skip
        b_new = tl.maximum(b_m, tl.max(b_a, 1))
        b_l = b_l * tl.exp2(b_m - b_new) + tl.sum(tl.exp2(b_a - b_new[:, None]), 1)
        b_m = b_new
    o_row = i_m * (BM // CELL_Q) + tl.arange(0, BM // CELL_Q)
    rows = tl.minimum(tl.maximum(ROWS - o_row * CELL_Q, 1), CELL_Q).to(tl.float32)
    for start in range(0, COLUMNS, BN):
        o_n = start + tl.arange(0, BN)
        b_a = thinned(
            p_q, p_k, o_m, o_n, stride_qs, stride_qd, stride_ks, stride_kd, S, T, scale,
            STRIDE, D, BD, BM, BN, UPCAST_DOT,
        )  # fmt: skip
        b_p = tl.exp2(b_a - b_m[:, None]) / b_l[:, None]
        b_p = tl.where((o_m < ROWS)[:, None], b_p, 0.0)
        b_p = tl.reshape(b_p, [BM // CELL_Q, CELL_Q, BN // CELL_K, CELL_K])
        b_cell = tl.max(b_p, 3) if LARGEST else tl.sum(b_p, 3)
        b_out = tl.max(b_cell, 1) if LARGEST else tl.sum(b_cell, 1) / rows[:, None]
        o_column = start // CELL_K + tl.arange(0, BN // CELL_K)
        m_out = (o_row < N)[:, None] & (o_column < M)[None, :]
        p_out = OUT + (i_bh * N + o_row.to(tl.int64)[:, None]) * M + o_column[None, :]
        tl.store(p_out, b_out, mask=m_out)


def pooled_softmax_triton(
    q: Tensor,
    k: Tensor,
    stride: int,
    cell_q: int,
    cell_k: int,
    scale: float,
    largest: bool,
    upcast_dot: bool,
) -> Tensor:
    """Launch the kernel; the cells are powers of two."""
    b, h, s, d = q.shape
    t = k.shape[2]
    rows, columns = -(-s // stride), -(-t // stride)
    n, m = -(-rows // cell_q), -(-columns // cell_k)
    out = torch.empty(b, h, n, m, device=q.device, dtype=torch.float32)
    tile_m, tile_n = max(TILE, cell_q), max(TILE, cell_k)
    pooled_softmax_kernel[(triton.cdiv(rows, tile_m), b * h)](
        q,
        k,
        out,
        *q.stride(),
        *k.stride(),
        h,
        k.shape[1],
        s,
        t,
        rows,
        columns,
        n,
        m,
        scale / stride * LOG2_E,
        STRIDE=stride,
        D=d,
        BD=max(16, next_power_of_2(d)),
        CELL_Q=cell_q,
        CELL_K=cell_k,
        BM=tile_m,
        BN=tile_n,
        LARGEST=largest,
        UPCAST_DOT=upcast_dot,
        num_warps=4,
        num_stages=2,
    )
    return out
