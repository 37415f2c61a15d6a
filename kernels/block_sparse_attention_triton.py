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

__all__ = [
    "attention_kernel",
    "dkv_kernel",
    "dq_kernel",
    "launch_attention",
    "launch_gradients",
]

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
    s_ib,
    s_ih,
    s_iq,
    s_cb,
    s_ch,
    s_cq,
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
    HAS_VALID: tl.constexpr,
    HAS_LENS: tl.constexpr,
    UPCAST_DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    PARTS_Q: tl.constexpr = (BLOCK_Q + BM - 1) // BM
    PARTS_K: tl.constexpr = (BLOCK_K + BN - 1) // BN
    part = tl.program_id(0) % PARTS_Q
    list_id = tl.program_id(0) // PARTS_Q
    i_q = (list_id % NQ).to(tl.int64)
    b = (list_id // NQ // H).to(tl.int64)
    h = (list_id // NQ % H).to(tl.int64)

    o_in = part * BM + tl.arange(0, BM)
    o_m = i_q * BLOCK_Q + o_in
    o_n = tl.arange(0, BN)
    o_d = tl.arange(0, D_PAD)
    m_m = (o_in < BLOCK_Q) & (o_m < N)
    m_d = o_d < D
    m_q = m_m[:, None] & m_d[None, :]
    o_row = (b * H + h) * N + o_m
    b_q = tl.load(
        p_q + b * s_qb + h * s_qh + o_m[:, None] * s_qn + o_d[None, :] * s_qd, mask=m_q, other=0.0
    )
    b_do = tl.load(p_do + o_row[:, None] * D + o_d[None, :], mask=m_q, other=0.0)
    b_lse = tl.load(p_lse + o_row, mask=m_m, other=0.0)
    b_delta = tl.load(p_delta + o_row, mask=m_m, other=0.0)
    # A row without keys has lse = -inf and no p that counts.
    b_lse = tl.where(b_lse == float("-inf"), 0.0, b_lse) * 1.4426950408889634
    end = M
    if HAS_LENS:
        end = tl.minimum(end, tl.load(p_lens + b).to(tl.int32))
    p_k += b * s_kb + (h // GROUP) * s_kh
    p_v += b * s_vb + (h // GROUP) * s_vh
    p_idx += b * s_ib + h * s_ih + i_q * s_iq
    count = tl.load(p_cnt + b * s_cb + h * s_ch + i_q * s_cq)

    b_dq = tl.zeros([BM, D_PAD], tl.float32)
    for i in range(0, count * PARTS_K):
        j = tl.load(p_idx + i // PARTS_K)
        o_k = (i % PARTS_K) * BN + o_n
        start = j.to(tl.int64) * BLOCK_K
        m_n = (o_k < BLOCK_K) & (start + o_k < end)
        if HAS_VALID:
            m_n = m_n & (o_k < tl.load(p_valid + j))
        m_k = m_n[:, None] & m_d[None, :]
        o_kn, o_vn = start * s_kn + o_k[:, None] * s_kn, start * s_vn + o_k[:, None] * s_vn
        b_k = tl.load(p_k + o_kn + o_d[None, :] * s_kd, mask=m_k, other=0.0)
        b_v = tl.load(p_v + o_vn + o_d[None, :] * s_vd, mask=m_k, other=0.0)
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
    s_ib,
    s_ih,
    s_ik,
    s_cb,
    s_ch,
    s_ck,
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
    HAS_VALID: tl.constexpr,
    HAS_LENS: tl.constexpr,
    UPCAST_DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    PARTS_Q: tl.constexpr = (BLOCK_Q + BM - 1) // BM
    PARTS_K: tl.constexpr = (BLOCK_K + BN - 1) // BN
    part = tl.program_id(0) % PARTS_K
    list_id = tl.program_id(0) // PARTS_K
    j = (list_id % NK).to(tl.int64)
    b = (list_id // NK // H).to(tl.int64)
    h = (list_id // NK % H).to(tl.int64)

    o_in = part * BN + tl.arange(0, BN)
    o_n = j * BLOCK_K + o_in
    o_m = tl.arange(0, BM)
    o_d = tl.arange(0, D_PAD)
    m_d = o_d < D
    end = M
    if HAS_LENS:
        end = tl.minimum(end, tl.load(p_lens + b).to(tl.int32))
    m_n = (o_in < BLOCK_K) & (o_n < end)
    if HAS_VALID:
        m_n = m_n & (o_in < tl.load(p_valid + j))
    m_k = m_n[:, None] & m_d[None, :]
    h_k = h // GROUP
    b_k = tl.load(
        p_k + b * s_kb + h_k * s_kh + o_n[:, None] * s_kn + o_d[None, :] * s_kd,
        mask=m_k,
        other=0.0,
    )
    b_v = tl.load(
        p_v + b * s_vb + h_k * s_vh + o_n[:, None] * s_vn + o_d[None, :] * s_vd,
        mask=m_k,
        other=0.0,
    )
    p_q += b * s_qb + h * s_qh
    p_idx += b * s_ib + h * s_ih + j * s_ik
    count = tl.load(p_cnt + b * s_cb + h * s_ch + j * s_ck)

    b_dk = tl.zeros([BN, D_PAD], tl.float32)
    b_dv = tl.zeros([BN, D_PAD], tl.float32)
    for i in range(0, count * PARTS_Q):
        o_q = (i % PARTS_Q) * BM + o_m
        row = tl.load(p_idx + i // PARTS_Q).to(tl.int64) * BLOCK_Q + o_q
        m_m = (o_q < BLOCK_Q) & (row < N)
        m_q = m_m[:, None] & m_d[None, :]
        o_row = (b * H + h) * N + row
        b_q = tl.load(p_q + row[:, None] * s_qn + o_d[None, :] * s_qd, mask=m_q, other=0.0)
        b_do = tl.load(p_do + o_row[:, None] * D + o_d[None, :], mask=m_q, other=0.0)
        b_lse = tl.load(p_lse + o_row, mask=m_m, other=0.0)
        b_delta = tl.load(p_delta + o_row, mask=m_m, other=0.0)
        b_lse = tl.where(b_lse == float("-inf"), 0.0, b_lse) * 1.4426950408889634
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
    strides = (*q.stride(), *k.stride(), *v.stride())
    constants = {
        "H": heads,
        "GROUP": heads // kv_heads,
        "D": d,
        "D_PAD": max(next_power_of_2(d), 16),
        "BLOCK_Q": block_q,
        "BLOCK_K": block_k,
        "BM": tiles.block_m,
        "BN": tiles.block_n,
        "HAS_VALID": kv_valid is not None,
        "HAS_LENS": kv_lens is not None,
        "UPCAST_DOT": upcast_dot,
        "PRECISION": precision,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
    idx, cnt = rows
    programs = batch * heads * cnt.shape[2] * -(-block_q // tiles.block_m)
    dq_kernel[(programs,)](
        *(q, k, v, do, lse, delta, dq, idx, cnt, kv_valid, kv_lens),
        *strides,
        *idx.stride()[:3],
        *cnt.stride(),
        *(n, m, cnt.shape[2], scale),
        **constants,
    )
    idx, cnt = columns
    programs = batch * heads * cnt.shape[2] * -(-block_k // tiles.block_n)
    dkv_kernel[(programs,)](
        *(q, k, v, do, lse, delta, dk, dv, idx, cnt, kv_valid, kv_lens),
        *strides,
        *idx.stride()[:3],
        *cnt.stride(),
        *(n, m, cnt.shape[2], scale),
        **constants,
    )
    dk, dv = (x.view(batch, kv_heads, -1, m, d).sum(2) for x in (dk, dv))
    return dq, dk, dv
