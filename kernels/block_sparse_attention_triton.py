"""Triton kernel of block-sparse attention: one program holds one tile of queries, walks its list.

s = q k^T * scale * log2(e),  m' = max(m, rowmax s),  p = 2^(s - m'),  a = 2^(m - m')
l = l * a + rowsum p,  acc = acc * a + p v,  m = m';  then  o = acc / l,  lse = (m + log2 l) ln 2
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from skipstep.kernels.block_walk_triton import (
    dot,
    finished,
    key_mask,
    keys_end,
    list_of,
    load_rows,
    online_softmax,
    program_of,
)
from skipstep.kernels.dispatch import next_power_of_2
from skipstep.kernels.tuning import LOG2_E, Tiles

__all__ = ["attention_kernel", "launch_attention"]


@triton.jit(do_not_specialize=["N", "M", "NQ"])
@no_type_check
def attention_kernel(
    p_q,
    p_k,
    p_v,
    p_o,
    p_lse,
    p_idx,
    p_cnt,
    p_order,
    p_valid,
    p_lens,
    s_q,
    s_k,
    s_v,
    s_o,
    s_idx,
    s_cnt,
    N,
    M,
    NQ,
    scale_log2,
    skip_log2,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    EVEN: tl.constexpr,
    SKIP: tl.constexpr,
    UPCAST_DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    PARTS_K: tl.constexpr = (BLOCK_K + BN - 1) // BN
    part, i_q, b, h = program_of(p_order, NQ, H, (BLOCK_Q + BM - 1) // BM)
    o_in = part * BM + tl.arange(0, BM)
    o_m = i_q * BLOCK_Q + o_in
    o_n = tl.arange(0, BN)
    o_d = tl.arange(0, D_PAD)
    m_d = o_d < D
    m_m = (o_in < BLOCK_Q) & (o_m < N)
    m_q = m_m[:, None] & m_d[None, :]
    b_q = load_rows(p_q + b * s_q[0] + h * s_q[1], s_q, o_m, o_d, m_q)
    p_k += b * s_k[0] + h // GROUP * s_k[1]
    p_v += b * s_v[0] + h // GROUP * s_v[1]
    p_idx, count = list_of(p_idx, p_cnt, s_idx, s_cnt, b, h, i_q)
    end = keys_end(p_lens, b, M)

    b_m = tl.full([BM], float("-inf"), tl.float32)
    b_l = tl.zeros([BM], tl.float32)
    b_acc = tl.zeros([BM, D_PAD], tl.float32)
    for i in range(0, count * PARTS_K):
        j = tl.load(p_idx + i // PARTS_K)
        o_k = (i % PARTS_K) * BN + o_n
        m_n = key_mask(o_k, j, end, p_valid, BLOCK_K, EVEN)
        m_k = m_n[:, None] & m_d[None, :]
        rows = j.to(tl.int64) * BLOCK_K + o_k
        b_k = load_rows(p_k, s_k, rows, o_d, m_k)
        s = dot(b_q, tl.trans(b_k), UPCAST_DOT, PRECISION) * scale_log2
        if not EVEN or BLOCK_K % BN != 0:
            s = tl.where(m_n[None, :], s, float("-inf"))
        b_v = load_rows(p_v, s_v, rows, o_d, m_k)
        if SKIP:
            # Rows without a key so far take the tile, whatever its scores.
            ahead = tl.where(b_m == float("-inf"), 0.0, tl.max(s, 1) - b_m)
            take = tl.max(ahead, 0) >= skip_log2
        else:
            take = True
        if take:
            p, a, b_m, b_l = online_softmax(s, b_m, b_l)
            b_acc = b_acc * a[:, None] + dot(p.to(b_v.dtype), b_v, UPCAST_DOT, PRECISION)

    o, lse = finished(b_acc, b_m, b_l)
    p_o += b * s_o[0] + h * s_o[1]
    o_o = o_m[:, None] * s_o[2] + o_d[None, :] * s_o[3]
    tl.store(p_o + o_o, o.to(p_o.dtype.element_ty), mask=m_q)
    tl.store(p_lse + (b * H + h) * N + o_m, lse, mask=m_m)


def launch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    idx: Tensor,
    cnt: Tensor,
    order: Tensor | None,
    kv_valid: Tensor | None,
    kv_lens: Tensor | None,
    *,
    block_q: int,
    block_k: int,
    scale: float,
    skip_log2: float | None,
    tiles: Tiles,
    upcast_dot: bool,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Run the kernel on [b, h, n, d] tensors; lists are expanded to batch and heads."""
    batch, heads, n, d = q.shape
    m, nq = k.shape[2], cnt.shape[2]
    o = torch.empty_like(q)
    lse = torch.empty(batch, heads, n, dtype=torch.float32, device=q.device)
    attention_kernel[(batch * heads * nq * -(-block_q // tiles.block_m),)](
        *(q, k, v, o, lse, idx, cnt, order, kv_valid, kv_lens),
        *(x.stride() for x in (q, k, v, o, idx, cnt)),
        *(n, m, nq, scale * LOG2_E, 0.0 if skip_log2 is None else skip_log2),
        H=heads,
        GROUP=heads // k.shape[1],
        D=d,
        D_PAD=max(next_power_of_2(d), 16),
        BLOCK_Q=block_q,
        BLOCK_K=block_k,
        BM=tiles.block_m,
        BN=tiles.block_n,
        EVEN=m % block_k == 0 and kv_valid is None and kv_lens is None,
        SKIP=skip_log2 is not None,
        UPCAST_DOT=upcast_dot,
        PRECISION=precision,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return o, lse
