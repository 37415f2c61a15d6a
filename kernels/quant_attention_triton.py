"""Triton kernel of attention with integer scores: the walk of `block_sparse_attention_triton`.

s = (q8 k8^T) * s_q * s_k (+ bias), * scale * log2(e);  p 2^(s - m') to the type of v (fp8: 448 p)
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
    s_q,
    s_k,
    s_v,
    s_idx,
    s_cnt,
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
    BLOCK_SCALES: tl.constexpr,
    FP8: tl.constexpr,
    UPCAST_DOT: tl.constexpr,
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
    p_qs += (b * H + h) * N
    p_ks += (b * (H // GROUP) + h // GROUP) * M
    if BLOCK_SCALES:
        b_qs = tl.load(p_qs + tl.minimum(i_q * BLOCK_Q + part * BM, N - 1)) * scale_log2
    else:
        b_qs = tl.load(p_qs + o_m, mask=m_m, other=0.0)[:, None] * scale_log2
    if p_bias is not None:
        GROUPS_Q = (N + BIAS_ROWS - 1) // BIAS_ROWS
        p_bias += ((b * H + h) * GROUPS_Q + o_m // BIAS_ROWS) * M
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
        start = j.to(tl.int64) * BLOCK_K
        b_k = load_rows(p_k, s_k, start + o_k, o_d, m_k)
        s = tl.dot(b_q, tl.trans(b_k), out_dtype=tl.int32).to(tl.float32)
        if BLOCK_SCALES:
            s = s * (b_qs * tl.load(p_ks + tl.minimum(start + (i % PARTS_K) * BN, M - 1)))
        else:
            s = s * b_qs * tl.load(p_ks + start + o_k, mask=m_n, other=0.0)[None, :]
        if p_bias is not None:
            s += scale_log2 * tl.load(
                p_bias[:, None] + start + o_k[None, :],
                mask=m_m[:, None] & m_n[None, :],
                other=0.0,
            )
        if not EVEN or BLOCK_K % BN != 0:
            s = tl.where(m_n[None, :], s, float("-inf"))
        p, a, b_m, b_l = online_softmax(s, b_m, b_l)
        b_v = load_rows(p_v, s_v, start + o_k, o_d, m_k)
        if FP8:
            p = p * 448.0
        b_acc = b_acc * a[:, None] + dot(p.to(b_v.dtype), b_v, UPCAST_DOT, "ieee")

    o, lse = finished(b_acc, b_m, b_l)
    row = (b * H + h) * N + o_m
    tl.store(p_o + row[:, None] * D + o_d[None, :], o, mask=m_q)
    tl.store(p_lse + row, lse, mask=m_m)


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
    bias = None if bias is None else bias.contiguous()
    scales = q_scale.contiguous(), k_scale.contiguous()
    quantized_kernel[(batch * heads * nq * -(-block_q // tiles.block_m),)](
        *(q8, scales[0], k8, scales[1], bias, v, o, lse, idx, cnt, order, kv_valid, kv_lens),
        *(x.stride() for x in (q8, k8, v, idx, cnt)),
        *(n, m, nq, scale * LOG2_E),
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
        BLOCK_SCALES=scale_per_block,
        FP8=v.dtype == torch.float8_e4m3fn,
        UPCAST_DOT=upcast_dot,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return o, lse
