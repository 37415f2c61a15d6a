"""Triton kernels of block-sparse attention: forward, and the two halves of its backward.

One program holds one tile of queries and walks its list (online softmax, base 2):

s = q k^T * scale * log2(e),  m' = max(m, rowmax s),  p = 2^(s - m'),  a = 2^(m - m')
l = l * a + rowsum p,  acc = acc * a + p v,  m = m';  then  o = acc / l,  lse = (m + log2 l) ln 2

Backward, with p = exp(s - lse) again, delta = rowsum(do * o) - dlse and ds = p * (do v^T - delta):

dq_i = scale * sum_j ds_ij k_j     over the list of a query block
dk_j = scale * sum_i ds_ij q_i,  dv_j = sum_i p_ij do_i     over the transposed list of a key block
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from skipstep.kernels.dispatch import next_power_of_2
from skipstep.kernels.tuning import Tiles

__all__ = ["attention_kernel", "launch_attention"]

LOG2_E = 1.4426950408889634


@triton.jit
@no_type_check
def dot(a, b, UPCAST_DOT: tl.constexpr, PRECISION: tl.constexpr):
    if UPCAST_DOT:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a, b, input_precision=PRECISION)


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
    s_qb,
    s_qh,
    s_qn,
    s_qd,
    s_kb,
    s_kh,
    s_kn,
    s_kd,
    s_vb,
    s_vh,
    s_vn,
    s_vd,
    s_ob,
    s_oh,
    s_on,
    s_od,
    s_ib,
    s_ih,
    s_iq,
    s_cb,
    s_ch,
    s_cq,
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
    HAS_ORDER: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_LENS: tl.constexpr,
    SKIP: tl.constexpr,
    UPCAST_DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    PARTS_Q: tl.constexpr = (BLOCK_Q + BM - 1) // BM
    PARTS_K: tl.constexpr = (BLOCK_K + BN - 1) // BN
    pid = tl.program_id(0)
    part = pid % PARTS_Q
    list_id = pid // PARTS_Q
    if HAS_ORDER:
        list_id = tl.load(p_order + list_id)
    i_q = list_id % NQ
    b = (list_id // NQ // H).to(tl.int64)
    h = (list_id // NQ % H).to(tl.int64)
    h_k = h // GROUP

    o_in = part * BM + tl.arange(0, BM)
    o_m = i_q.to(tl.int64) * BLOCK_Q + o_in
    o_n = tl.arange(0, BN)
    o_d = tl.arange(0, D_PAD)
    m_m = (o_in < BLOCK_Q) & (o_m < N)
    m_d = o_d < D
    b_q = tl.load(
        p_q + b * s_qb + h * s_qh + o_m[:, None] * s_qn + o_d[None, :] * s_qd,
        mask=m_m[:, None] & m_d[None, :],
        other=0.0,
    )
    end = M
    if HAS_LENS:
        end = tl.minimum(end, tl.load(p_lens + b).to(tl.int32))
    p_k += b * s_kb + h_k * s_kh
    p_v += b * s_vb + h_k * s_vh
    p_idx += b * s_ib + h * s_ih + i_q.to(tl.int64) * s_iq
    count = tl.load(p_cnt + b * s_cb + h * s_ch + i_q.to(tl.int64) * s_cq)

    b_m = tl.full([BM], float("-inf"), tl.float32)
    b_l = tl.zeros([BM], tl.float32)
    b_acc = tl.zeros([BM, D_PAD], tl.float32)
    for i in range(0, count * PARTS_K):
        j = tl.load(p_idx + i // PARTS_K)
        o_k = (i % PARTS_K) * BN + o_n
        start = j.to(tl.int64) * BLOCK_K
        m_n = o_k < BLOCK_K
        if not EVEN:
            m_n = m_n & (start + o_k < end)
            if HAS_VALID:
                m_n = m_n & (o_k < tl.load(p_valid + j))
        b_k = tl.load(
            p_k + start * s_kn + o_k[None, :] * s_kn + o_d[:, None] * s_kd,
            mask=m_n[None, :] & m_d[:, None],
            other=0.0,
        )
        s = dot(b_q, b_k, UPCAST_DOT, PRECISION) * scale_log2
        if not EVEN or BLOCK_K % BN != 0:
            s = tl.where(m_n[None, :], s, float("-inf"))
        highest = tl.max(s, 1)
        b_v = tl.load(
            p_v + start * s_vn + o_k[:, None] * s_vn + o_d[None, :] * s_vd,
            mask=m_n[:, None] & m_d[None, :],
            other=0.0,
        )
        if SKIP:
            # Rows without a key so far take the tile, whatever its scores.
            ahead = tl.where(b_m == float("-inf"), 0.0, highest - b_m)
            take = tl.max(ahead, 0) >= skip_log2
        else:
            take = True
        if take:
            m_new = tl.maximum(b_m, highest)
            # A row that has seen no key keeps m = -inf, and -inf minus -inf is no number.
            m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
            a = tl.exp2(b_m - m_safe)
            p = tl.exp2(s - m_safe[:, None])
            b_l = b_l * a + tl.sum(p, 1)
            b_acc = b_acc * a[:, None] + dot(p.to(b_v.dtype), b_v, UPCAST_DOT, PRECISION)
            b_m = m_new

    l_safe = tl.where(b_l == 0.0, 1.0, b_l)
    tl.store(
        p_o + b * s_ob + h * s_oh + o_m[:, None] * s_on + o_d[None, :] * s_od,
        (b_acc / l_safe[:, None]).to(p_o.dtype.element_ty),
        mask=m_m[:, None] & m_d[None, :],
    )
    tl.store(p_lse + (b * H + h) * N + o_m, (b_m + tl.log2(l_safe)) * 0.6931471805599453, mask=m_m)


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
    """Run the forward kernel on [b, h, n, d] tensors; lists are expanded to batch and heads."""
    batch, heads, n, d = q.shape
    m = k.shape[2]
    o = torch.empty_like(q)
    lse = torch.empty(batch, heads, n, dtype=torch.float32, device=q.device)
    nq = cnt.shape[2]
    parts = -(-block_q // tiles.block_m)
    attention_kernel[(batch * heads * nq * parts,)](
        q,
        k,
        v,
        o,
        lse,
        idx,
        cnt,
        order,
        kv_valid,
        kv_lens,
        *q.stride(),
        *k.stride(),
        *v.stride(),
        *o.stride(),
        *idx.stride()[:3],
        *cnt.stride(),
        n,
        m,
        nq,
        scale * LOG2_E,
        0.0 if skip_log2 is None else skip_log2,
        H=heads,
        GROUP=heads // k.shape[1],
        D=d,
        D_PAD=max(next_power_of_2(d), 16),
        BLOCK_Q=block_q,
        BLOCK_K=block_k,
        BM=tiles.block_m,
        BN=tiles.block_n,
        EVEN=m % block_k == 0 and kv_valid is None and kv_lens is None,
        HAS_ORDER=order is not None,
        HAS_VALID=kv_valid is not None,
        HAS_LENS=kv_lens is not None,
        SKIP=skip_log2 is not None,
        UPCAST_DOT=upcast_dot,
        PRECISION=precision,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return o, lse
