"""Triton kernel of `skipstep.kernels.norm_modulate`: one program holds one token."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from skipstep.kernels.dispatch import next_power_of_2

__all__ = ["norm_modulate_kernel", "norm_modulate_triton"]


@triton.jit
@no_type_check
def norm_modulate_kernel(
    X,
    RESIDUAL,
    GATE,
    SCALE,
    SHIFT,
    WEIGHT,
    OUT_H,
    OUT_Y,
    N,
    M_GATE,
    M_SCALE,
    M_SHIFT,
    eps,
    D: tl.constexpr,
    BD: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    RMS: tl.constexpr,
):
    # h = residual + gate * x;  y = (h - mean) / sqrt(var + eps) * weight * (1 + scale) + shift
    i_row = tl.program_id(0).to(tl.int64)
    i_b, i_n = i_row // N, i_row % N
    o_d = tl.arange(0, BD)
    m_d = o_d < D
    b_h = tl.load(X + i_row * D + o_d, mask=m_d, other=0.0).to(tl.float32)
    if HAS_GATE:
        p_gate = GATE + (i_b * M_GATE + i_n * M_GATE // N) * D + o_d
        b_gate = tl.load(p_gate, mask=m_d, other=0.0).to(tl.float32)
        b_residual = tl.load(RESIDUAL + i_row * D + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_rounded = (b_residual + b_gate * b_h).to(OUT_H.dtype.element_ty)
        tl.store(OUT_H + i_row * D + o_d, b_rounded, mask=m_d)
        b_h = b_rounded.to(tl.float32)
    if not RMS:
        b_h = tl.where(m_d, b_h - tl.sum(b_h, 0) / D, 0.0)
    b_y = b_h / tl.sqrt(tl.sum(b_h * b_h, 0) / D + eps)
    if HAS_WEIGHT:
        b_y *= tl.load(WEIGHT + o_d, mask=m_d, other=0.0).to(tl.float32)
    p_scale = SCALE + (i_b * M_SCALE + i_n * M_SCALE // N) * D + o_d
    p_shift = SHIFT + (i_b * M_SHIFT + i_n * M_SHIFT // N) * D + o_d
    b_scale = tl.load(p_scale, mask=m_d, other=0.0).to(tl.float32)
    b_shift = tl.load(p_shift, mask=m_d, other=0.0).to(tl.float32)
    b_y = b_y * (1.0 + b_scale) + b_shift
    tl.store(OUT_Y + i_row * D + o_d, b_y.to(OUT_Y.dtype.element_ty), mask=m_d)


def norm_modulate_triton(
    x: Tensor,
    residual: Tensor | None,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor | None,
    eps: float,
    rms: bool,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel; the modulations are [b, m, d]. Without a gate, h is empty."""
    b, n, d = x.shape
    x = x.contiguous()
    y = torch.empty_like(x)
    h = y if gate is None else torch.empty_like(x)
    gate_rows = 1 if gate is None else gate.shape[1]
    norm_modulate_kernel[(b * n,)](
        x,
        x if residual is None else residual.contiguous(),
        x if gate is None else gate.contiguous(),
        scale.contiguous(),
        shift.contiguous(),
        x if weight is None else weight,
        h,
        y,
        n,
        gate_rows,
        scale.shape[1],
        shift.shape[1],
        eps,
        D=d,
        BD=next_power_of_2(d),
        HAS_GATE=gate is not None,
        HAS_WEIGHT=weight is not None,
        RMS=rms,
        num_warps=4 if d <= 2048 else 8,
    )
    return h, y
