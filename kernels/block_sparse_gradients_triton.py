"""Triton kernels of the gradients of block-sparse attention: of queries, and of keys and values.

p = exp(s - lse) again,  delta = rowsum(do * o) - dlse,  ds = p * (do v^T - delta)

dq_i = scale * sum_j ds_ij k_j     over the list of a query block
dk_j = scale * sum_i ds_ij q_i,  dv_j = sum_i p_ij do_i     over the transposed list of a key block
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from skipstep.kernels.block_walk_triton import (
    dot,
    key_mask,
    keys_end,
    list_of,
    load_rows,
    program_of,
)
from skipstep.kernels.dispatch import next_power_of_2
from skipstep.kernels.tuning import Tiles

__all__ = ["dkv_kernel", "dq_kernel", "launch_gradients"]


@triton.jit
@no_type_check
def load_outputs(p_do, p_lse, p_delta, o_row, o_d, m_m, m_q, D: tl.constexpr):
    # What a row of queries brings from the forward pass; lse in base 2.
    b_do = tl.load(p_do + o_row[:, None] * D + o_d[None, :], mask=m_q, other=0.0)
    b_lse = tl.load(p_lse + o_row, mask=m_m, other=0.0)
    # A row without keys has lse = -inf and no p that counts.
    b_lse = tl.where(b_lse == float("-inf"), 0.0, b_lse) * 1.4426950408889634
    return b_do, b_lse, tl.load(p_delta + o_row, mask=m_m, other=0.0)


@triton.jit(do_not_specialize=["N", "M", "NQ"])
@no_type_check
def dq_kernel(
    p_q,
    p_k,
    p_v,
    p_do,
    p_lse,
    p_delta,
    p_dq,
    p_idx,
    p_cnt,
    p_valid,
    p_lens,
    s_q,
    s_k,
    s_v,
    s_idx,
    s_cnt,
    N,
    M,
    NQ,
    scale,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    UPCAST_DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    PARTS_K: tl.constexpr = (BLOCK_K + BN - 1) // BN
    part, i_q, b, h = program_of(None, NQ, H, (BLOCK_Q + BM - 1) // BM)
    o_in = part * BM + tl.arange(0, BM)
    o_m = i_q * BLOCK_Q + o_in
    o_n = tl.arange(0, BN)
    o_d = tl.arange(0, D_PAD)
    m_d = o_d < D
    m_m = (o_in < BLOCK_Q) & (o_m < N)
    m_q = m_m[:, None] & m_d[None, :]
    o_row = (b * H + h) * N + o_m
    b_q = load_rows(p_q + b * s_q[0] + h * s_q[1], s_q, o_m, o_d, m_q)
    b_do, b_lse, b_delta = load_outputs(p_do, p_lse, p_delta, o_row, o_d, m_m, m_q, D)
    p_k += b * s_k[0] + h // GROUP * s_k[1]
    p_v += b * s_v[0] + h // GROUP * s_v[1]
    p_idx, count = list_of(p_idx, p_cnt, s_idx, s_cnt, b, h, i_q)
    end = keys_end(p_lens, b, M)

    b_dq = tl.zeros([BM, D_PAD], tl.float32)
    for i in range(0, count * PARTS_K):
        j = tl.load(p_idx + i // PARTS_K)
        o_k = (i % PARTS_K) * BN + o_n
        m_n = key_mask(o_k, j, end, p_valid, BLOCK_K, False)
        m_k = m_n[:, None] & m_d[None, :]
        rows = j.to(tl.int64) * BLOCK_K + o_k
        b_k = load_rows(p_k, s_k, rows, o_d, m_k)
        b_v = load_rows(p_v, s_v, rows, o_d, m_k)
        s = dot(b_q, tl.trans(b_k), UPCAST_DOT, PRECISION) * (scale * 1.4426950408889634)
        p = tl.where(m_n[None, :], tl.exp2(s - b_lse[:, None]), 0.0)
        dp = dot(b_do, tl.trans(b_v), UPCAST_DOT, PRECISION)
        ds = p * (dp - b_delta[:, None])
        b_dq += dot(ds.to(b_k.dtype), b_k, UPCAST_DOT, PRECISION)
    tl.store(p_dq + o_row[:, None] * D + o_d[None, :], b_dq * scale, mask=m_q)


@triton.jit(do_not_specialize=["N", "M", "NK"])
@no_type_check
def dkv_kernel(
    p_q,
    p_k,
    p_v,
    p_do,
    p_lse,
    p_delta,
    p_dk,
    p_dv,
    p_idx,
    p_cnt,
    p_valid,
    p_lens,
    s_q,
    s_k,
    s_v,
    s_idx,
    s_cnt,
    N,
    M,
    NK,
    scale,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    UPCAST_DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    PARTS_Q: tl.constexpr = (BLOCK_Q + BM - 1) // BM
    part, j, b, h = program_of(None, NK, H, (BLOCK_K + BN - 1) // BN)
    o_in = part * BN + tl.arange(0, BN)
    o_n = j * BLOCK_K + o_in
    o_m = tl.arange(0, BM)
    o_d = tl.arange(0, D_PAD)
    m_d = o_d < D
    m_n = key_mask(o_in, j, keys_end(p_lens, b, M), p_valid, BLOCK_K, False)
    m_k = m_n[:, None] & m_d[None, :]
    b_k = load_rows(p_k + b * s_k[0] + h // GROUP * s_k[1], s_k, o_n, o_d, m_k)
    b_v = load_rows(p_v + b * s_v[0] + h // GROUP * s_v[1], s_v, o_n, o_d, m_k)
    p_q += b * s_q[0] + h * s_q[1]
    p_idx, count = list_of(p_idx, p_cnt, s_idx, s_cnt, b, h, j)

    b_dk = tl.zeros([BN, D_PAD], tl.float32)
    b_dv = tl.zeros([BN, D_PAD], tl.float32)
    for i in range(0, count * PARTS_Q):
        o_q = (i % PARTS_Q) * BM + o_m
        row = tl.load(p_idx + i // PARTS_Q).to(tl.int64) * BLOCK_Q + o_q
        m_m = (o_q < BLOCK_Q) & (row < N)
        m_q = m_m[:, None] & m_d[None, :]
        o_row = (b * H + h) * N + row
        b_q = load_rows(p_q, s_q, row, o_d, m_q)
        b_do, b_lse, b_delta = load_outputs(p_do, p_lse, p_delta, o_row, o_d, m_m, m_q, D)
        s = dot(b_k, tl.trans(b_q), UPCAST_DOT, PRECISION) * (scale * 1.4426950408889634)
        p = tl.where(m_n[:, None] & m_m[None, :], tl.exp2(s - b_lse[None, :]), 0.0)
        b_dv += dot(p.to(b_do.dtype), b_do, UPCAST_DOT, PRECISION)
        dp = dot(b_v, tl.trans(b_do), UPCAST_DOT, PRECISION)
        ds = p * (dp - b_delta[None, :])
        b_dk += dot(ds.to(b_q.dtype), b_q, UPCAST_DOT, PRECISION)
    o_key = ((b * H + h) * M + o_n)[:, None] * D + o_d[None, :]
    m_store = ((o_in < BLOCK_K) & (o_n < M))[:, None] & m_d[None, :]
    tl.store(p_dk + o_key, b_dk * scale, mask=m_store)
    tl.store(p_dv + o_key, b_dv, mask=m_store)


def launch_gradients(
    do: Tensor,
    delta: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    rows: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor],
    kv_valid: Tensor | None,
    kv_lens: Tensor | None,
    *,
    block_q: int,
    block_k: int,
    scale: float,
    tiles: Tiles,
    upcast_dot: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return fp32 gradients of q, k and v.

    `rows` are (idx, cnt) of the query blocks, `columns` those of the key blocks, which name query
    blocks; both expanded to batch and heads. Key heads get the sum over their group.
    """
    batch, heads, n, d = q.shape
    kv_heads, m = k.shape[1:3]
    do, delta, lse = do.to(q.dtype).contiguous(), delta.contiguous(), lse.contiguous()
    dq = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    dk, dv = (
        torch.empty(batch, heads, m, d, dtype=torch.float32, device=q.device) for _ in range(2)
    )
    constants = {
        "H": heads,
        "GROUP": heads // kv_heads,
        "D": d,
        "D_PAD": max(next_power_of_2(d), 16),
        "BLOCK_Q": block_q,
        "BLOCK_K": block_k,
        "BM": tiles.block_m,
        "BN": tiles.block_n,
        "UPCAST_DOT": upcast_dot,
        "PRECISION": precision,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
    dq_kernel[(rows[1].numel() * -(-block_q // tiles.block_m),)](
        *(q, k, v, do, lse, delta, dq, *rows, kv_valid, kv_lens),
        *(x.stride() for x in (q, k, v, *rows)),
        *(n, m, rows[1].shape[2], scale),
        **constants,
    )
    dkv_kernel[(columns[1].numel() * -(-block_k // tiles.block_n),)](
        *(q, k, v, do, lse, delta, dk, dv, *columns, kv_valid, kv_lens),
        *(x.stride() for x in (q, k, v, *columns)),
        *(n, m, columns[1].shape[2], scale),
        **constants,
    )
    dk, dv = (x.view(batch, kv_heads, -1, m, d).sum(2) for x in (dk, dv))
    return dq, dk, dv
