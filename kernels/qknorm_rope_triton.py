"""Triton kernel of `skipstep.kernels.qknorm_rope`: one program holds one token of q or of k."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from skipstep.kernels.dispatch import next_power_of_2

__all__ = ["qk_norm_rope_kernel", "qk_norm_rope_triton"]


@triton.jit
@no_type_check
def qk_norm_rope_kernel(
    X,
    WEIGHT,
    COS,
    SIN,
    OUT,
    stride_b,
    stride_n,
    stride_h,
    stride_d,
    stride_ab,
    stride_an,
    stride_ad,
    N,
    H: tl.constexpr,
    HALF: tl.constexpr,
    BH: tl.constexpr,
    BHALF: tl.constexpr,
    eps,
    INTERLEAVED: tl.constexpr,
    ACROSS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
):
    # n = x / sqrt(mean x^2 + eps) * weight;  (a, b) -> (a cos - b sin, a sin + b cos)
    i_row = tl.program_id(0).to(tl.int64)
    i_b, i_n = i_row // N, i_row % N
    o_h = tl.arange(0, BH)[:, None]
    o_p = tl.arange(0, BHALF)[None, :]
    m_x = (o_h < H) & (o_p < HALF)
    o_a = 2 * o_p if INTERLEAVED else o_p
    o_b = 2 * o_p + 1 if INTERLEAVED else o_p + HALF
    p_x = X + i_b * stride_b + i_n * stride_n + o_h * stride_h
    b_a = tl.load(p_x + o_a * stride_d, mask=m_x, other=0.0).to(tl.float32)
    b_b = tl.load(p_x + o_b * stride_d, mask=m_x, other=0.0).to(tl.float32)
    b_square = tl.sum(b_a * b_a + b_b * b_b, 1)
    if ACROSS:
        b_root = 1.0 / tl.sqrt(tl.sum(b_square, 0) / (2 * HALF * H) + eps)
        b_a *= b_root
        b_b *= b_root
    else:
        b_each = 1.0 / tl.sqrt(b_square / (2 * HALF) + eps)
        b_a *= b_each[:, None]
        b_b *= b_each[:, None]
    if HAS_WEIGHT:
        p_w = WEIGHT + (o_h * (2 * HALF) if ACROSS else o_h * 0)
        b_a *= tl.load(p_w + o_a, mask=m_x, other=0.0).to(tl.float32)
        b_b *= tl.load(p_w + o_b, mask=m_x, other=0.0).to(tl.float32)
    o_angle = i_b * stride_ab + i_n * stride_an + tl.arange(0, BHALF) * stride_ad
    m_angle = tl.arange(0, BHALF) < HALF
    b_cos = tl.load(COS + o_angle, mask=m_angle, other=0.0).to(tl.float32)[None, :]
    b_sin = tl.load(SIN + o_angle, mask=m_angle, other=0.0).to(tl.float32)[None, :]
    p_out = OUT + (i_row * H + o_h) * (2 * HALF)
    b_first, b_second = b_a * b_cos - b_b * b_sin, b_a * b_sin + b_b * b_cos
    tl.store(p_out + o_a, b_first.to(OUT.dtype.element_ty), mask=m_x)
    tl.store(p_out + o_b, b_second.to(OUT.dtype.element_ty), mask=m_x)


def qk_norm_rope_triton(
    q: Tensor,
    k: Tensor,
    weight_q: Tensor | None,
    weight_k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    interleaved: bool,
    across_heads: bool,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel for q and for k; cos and sin are [b, n, d/2] of the same strides."""
    cos, sin = cos.float(), sin.float()
    if cos.stride() != sin.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    outs = []
    for x, weight in ((q, weight_q), (k, weight_k)):
        b, n, h, d = x.shape
        out = torch.empty(b, n, h, d, device=x.device, dtype=x.dtype)
        qk_norm_rope_kernel[(b * n,)](
            x,
            x if weight is None else weight,
            cos,
            sin,
            out,
            *x.stride(),
            *cos.stride(),
            n,
            H=h,
            HALF=d // 2,
            BH=next_power_of_2(h),
            BHALF=next_power_of_2(d // 2),
            eps=eps,
            INTERLEAVED=interleaved,
            ACROSS=across_heads,
            HAS_WEIGHT=weight is not None,
            num_warps=4,
        )
        outs.append(out)
    return outs[0], outs[1]
