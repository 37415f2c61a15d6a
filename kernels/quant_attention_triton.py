"""Triton kernel of attention with integer scores: the walk of `block_sparse_attention_triton`.

s = (q8 k8^T) * s_q * s_k (+ bias), * scale * log2(e);  p 2^(s - m') to the type of v (fp8: 448 p)
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from skipstep.kernels.block_sparse_attention_triton import LOG2_E, dot
from skipstep.kernels.dispatch import next_power_of_2
from skipstep.kernels.tuning import Tiles

__all__ = ["launch_quantized", "quantized_kernel"]


@triton.jit(do_not_specialize=["N", "M", "NQ"])
@no_type_check
def quantized_kernel(
    p_q,
    p_qs,
    p_k,
    p_ks,
    p_bias,
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
    H: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BIAS_ROWS: tl.constexpr,
    EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_LENS: tl.constexpr,
    BLOCK_SCALES: tl.constexpr,
    FP8: tl.constexpr,
    UPCAST_DOT: tl.constexpr,
):
    PARTS_Q: tl.constexpr = (BLOCK_Q + BM - 1) // BM
    PARTS_K: tl.constexpr = (BLOCK_K + BN - 1) // BN
    pid = tl.program_id(0)
    part = pid % PARTS_Q
    list_id = pid // PARTS_Q
    if HAS_ORDER:
        list_id = tl.load(p_order + list_id)
    i_q = (list_id % NQ).to(tl.int64)
    b = (list_id // NQ // H).to(tl.int64)
    h = (list_id // NQ % H).to(tl.int64)
    h_k = h // GROUP

    o_in = part * BM + tl.arange(0, BM)
    o_m = i_q * BLOCK_Q + o_in
    o_n = tl.arange(0, BN)
    o_d = tl.arange(0, D_PAD)
    m_m = (o_in < BLOCK_Q) & (o_m < N)
    m_d = o_d < D
    b_q = tl.load(
        p_q + b * s_qb + h * s_qh + o_m[:, None] * s_qn + o_d[None, :] * s_qd,
        mask=m_m[:, None] & m_d[None, :],
        other=0,
    )
    p_qs += (b * H + h) * N
    p_ks += (b * (H // GROUP) + h_k) * M
    if BLOCK_SCALES:
        b_qs = tl.load(p_qs + tl.minimum(i_q * BLOCK_Q + part * BM, N - 1)) * scale_log2
    else:
        b_qs = tl.load(p_qs + o_m, mask=m_m, other=0.0)[:, None] * scale_log2
    if HAS_BIAS:
        GROUPS_Q = (N + BIAS_ROWS - 1) // BIAS_ROWS
        p_bias += ((b * H + h) * GROUPS_Q + o_m // BIAS_ROWS) * M
    end = M
    if HAS_LENS:
        end = tl.minimum(end, tl.load(p_lens + b).to(tl.int32))
    p_k += b * s_kb + h_k * s_kh
    p_v += b * s_vb + h_k * s_vh
    p_idx += b * s_ib + h * s_ih + i_q * s_iq
    count = tl.load(p_cnt + b * s_cb + h * s_ch + i_q * s_cq)

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
            other=0,
        )
        s = tl.dot(b_q, b_k, out_dtype=tl.int32).to(tl.float32)
        if BLOCK_SCALES:
            s = s * (b_qs * tl.load(p_ks + tl.minimum(start + (i % PARTS_K) * BN, M - 1)))
        else:
            s = s * b_qs * tl.load(p_ks + start + o_k, mask=m_n, other=0.0)[None, :]
        if HAS_BIAS:
            s += scale_log2 * tl.load(
                p_bias[:, None] + start + o_k[None, :],
                mask=m_m[:, None] & m_n[None, :],
                other=0.0,
            )
        if not EVEN or BLOCK_K % BN != 0:
            s = tl.where(m_n[None, :], s, float("-inf"))
        m_new = tl.maximum(b_m, tl.max(s, 1))
        # A row that has seen no key keeps m = -inf, and -inf minus -inf is no number.
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        a = tl.exp2(b_m - m_safe)
        p = tl.exp2(s - m_safe[:, None])
        b_l = b_l * a + tl.sum(p, 1)
        b_v = tl.load(
            p_v + start * s_vn + o_k[:, None] * s_vn + o_d[None, :] * s_vd,
            mask=m_n[:, None] & m_d[None, :],
            other=0.0,
        )
        if FP8:
            p = p * 448.0
        b_acc = b_acc * a[:, None] + dot(p.to(b_v.dtype), b_v, UPCAST_DOT, "ieee")
        b_m = m_new

    l_safe = tl.where(b_l == 0.0, 1.0, b_l)
    row = (b * H + h) * N + o_m
    tl.store(
        p_o + row[:, None] * D + o_d[None, :],
        b_acc / l_safe[:, None],
        mask=m_m[:, None] & m_d[None, :],
    )
    tl.store(p_lse + row, (b_m + tl.log2(l_safe)) * 0.6931471805599453, mask=m_m)


def launch_quantized(
    q8: Tensor,
    q_scale: Tensor,
    k8: Tensor,
    k_scale: Tensor,
    bias: Tensor | None,
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
    scale_per_block: bool,
    tiles: Tiles,
    upcast_dot: bool,
) -> tuple[Tensor, Tensor]:
    """Run the kernel on [b, h, n, d] tensors; scales are contiguous, lists expanded to heads."""
    from skipstep.kernels.quant_attention import GROUP_Q

    batch, heads, n, d = q8.shape
    m = k8.shape[2]
    o = torch.empty(q8.shape, dtype=torch.float32, device=q8.device)
    lse = torch.empty(batch, heads, n, dtype=torch.float32, device=q8.device)
    nq = cnt.shape[2]
    quantized_kernel[(batch * heads * nq * (-(-block_q // tiles.block_m)),)](
        q8,
        q_scale.contiguous(),
        k8,
        k_scale.contiguous(),
        None if bias is None else bias.contiguous(),
        v,
        o,
        lse,
        idx,
        cnt,
        order,
        kv_valid,
        kv_lens,
        *q8.stride(),
        *k8.stride(),
        *v.stride(),
        *idx.stride()[:3],
        *cnt.stride(),
        n,
        m,
        nq,
        scale * LOG2_E,
        H=heads,
        GROUP=heads // k8.shape[1],
        D=d,
        D_PAD=max(next_power_of_2(d), 32),
        BLOCK_Q=block_q,
        BLOCK_K=block_k,
        BM=tiles.block_m,
        BN=tiles.block_n,
        BIAS_ROWS=GROUP_Q,
        EVEN=m % block_k == 0 and kv_valid is None and kv_lens is None,
        HAS_BIAS=bias is not None,
        HAS_ORDER=order is not None,
        HAS_VALID=kv_valid is not None,
        HAS_LENS=kv_lens is not None,
        BLOCK_SCALES=scale_per_block,
        FP8=v.dtype == torch.float8_e4m3fn,
        UPCAST_DOT=upcast_dot,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return o, lse
