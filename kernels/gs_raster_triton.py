"""Triton kernels of `skipstep.kernels.gs_raster`: compositing of tile lists, forward and backward.

Forward: one program per list walks its splats in chunks of CHUNK, keeps T and the feature sums of
the tile's pixels in registers, and stores T at the start of every chunk. Backward: one program per
list walks the same chunks back to front, rebuilds the weights from the stored T, and adds to each
splat once per list instead of once per pixel.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from skipstep.kernels.dispatch import next_power_of_2
from skipstep.kernels.gs_bin import ALPHA_MIN, TileLists

__all__ = ["MOST_CHANNELS", "CompositeTriton"]

# The sums of a tile stay in registers up to here; wider features are composited in groups.
MOST_CHANNELS = 64
CHUNK = 16


@triton.jit
@no_type_check
def _multiply(a, b):
    return a * b


@triton.jit
@no_type_check
def _weights(
    SPLATS, b_rows, m_k, px, py, b_T, alpha_max, ALPHA_MIN: tl.constexpr, T_MIN: tl.constexpr
):
    # alpha_k = min(alpha_max, exp(ln o - sigma_k)),  T_{k+1} = T_k (1 - alpha_k)
    p_s = SPLATS + b_rows * 6
    dx = px[:, None] - tl.load(p_s, mask=m_k, other=0.0)[None, :]
    dy = py[:, None] - tl.load(p_s + 1, mask=m_k, other=0.0)[None, :]
    A = tl.load(p_s + 2, mask=m_k, other=0.0)[None, :]
    B = tl.load(p_s + 3, mask=m_k, other=0.0)[None, :]
    C = tl.load(p_s + 4, mask=m_k, other=0.0)[None, :]
    log_opacity = tl.load(p_s + 5, mask=m_k, other=-10000.0)[None, :]
    raw = tl.exp(log_opacity - (A * dx * dx + C * dy * dy) * 0.5 - B * dx * dy)
    alpha = tl.minimum(raw, alpha_max)
    alpha = tl.where(alpha > ALPHA_MIN, alpha, 0.0)
    after = b_T[:, None] * tl.associative_scan(1.0 - alpha, 1, _multiply)
    before = after / (1.0 - alpha)
    alpha = tl.where(after > T_MIN, alpha, 0.0)
    return dx, dy, A, B, C, raw, alpha, before, after


@triton.jit
@no_type_check
def _pixels(i_l, tiles, columns, TILE: tl.constexpr):
    # The pixels of a tile, and where their middles lie.
    o_p = tl.arange(0, TILE * TILE)
    inside = i_l % tiles
    px = ((inside % columns) * TILE + o_p % TILE).to(tl.float32) + 0.5
    py = ((inside // columns) * TILE + o_p // TILE).to(tl.float32) + 0.5
    return o_p, px, py


@triton.jit
@no_type_check
def composite_forward_kernel(
    SPLATS,
    FEATURES,
    IDS,
    OFFSETS,
    CHUNKS,
    OUT,
    CHECKPOINTS,
    USED,
    tiles,
    columns,
    alpha_max,
    NC: tl.constexpr,
    BC: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    ALPHA_MIN: tl.constexpr,
    T_MIN: tl.constexpr,
):
    # out = sum_k alpha_k T_k f_k
    i_l = tl.program_id(0).to(tl.int64)
    o_p, px, py = _pixels(i_l, tiles, columns, TILE)
    o_k = tl.arange(0, CHUNK)
    o_c = tl.arange(0, BC)
    k = tl.load(OFFSETS + i_l)
    end = tl.load(OFFSETS + i_l + 1)
    chunk = tl.load(CHUNKS + i_l)
    b_T = tl.full((TILE * TILE,), 1.0, tl.float32)
    b_out = tl.zeros((TILE * TILE, BC), tl.float32)
    used = 0
    clearest = 1.0
    while (k < end) & (clearest > T_MIN):
        tl.store(CHECKPOINTS + chunk * (TILE * TILE) + o_p, b_T)
        m_k = k + o_k < end
        b_rows = tl.load(IDS + k + o_k, mask=m_k, other=0)
        dx, dy, A, B, C, raw, alpha, before, after = _weights(
            SPLATS, b_rows, m_k, px, py, b_T, alpha_max, ALPHA_MIN, T_MIN
        )
        m_f = m_k[:, None] & (o_c < NC)[None, :]
        b_f = tl.load(FEATURES + b_rows[:, None] * NC + o_c[None, :], mask=m_f, other=0.0)
        b_out = tl.dot(alpha * before, b_f, b_out, input_precision="ieee")
        b_T = tl.min(after, 1)
        clearest = tl.max(b_T, 0)
        k += CHUNK
        chunk += 1
        used += 1
    tl.store(USED + i_l, used)
    p_out = OUT + (i_l * (TILE * TILE) + o_p[:, None]) * NC + o_c[None, :]
    tl.store(p_out, b_out, mask=(o_c < NC)[None, :] & (o_p >= 0)[:, None])


@triton.jit
@no_type_check
def composite_backward_kernel(
    SPLATS,
    FEATURES,
    IDS,
    OFFSETS,
    CHUNKS,
    GRADIENT,
    CHECKPOINTS,
    USED,
    OF_SPLATS,
    OF_FEATURES,
    tiles,
    columns,
    alpha_max,
    NC: tl.constexpr,
    BC: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    ALPHA_MIN: tl.constexpr,
    T_MIN: tl.constexpr,
):
    # dalpha_k = T_k gd_k - (sum_{j>k} w_j gd_j) / (1 - alpha_k)
    i_l = tl.program_id(0).to(tl.int64)
    o_p, px, py = _pixels(i_l, tiles, columns, TILE)
    o_k = tl.arange(0, CHUNK)
    o_c = tl.arange(0, BC)
    begin = tl.load(OFFSETS + i_l)
    end = tl.load(OFFSETS + i_l + 1)
    first = tl.load(CHUNKS + i_l)
    used = tl.load(USED + i_l)
    p_g = GRADIENT + (i_l * (TILE * TILE) + o_p[:, None]) * NC + o_c[None, :]
    b_g = tl.load(p_g, mask=(o_c < NC)[None, :] & (o_p >= 0)[:, None], other=0.0)
    behind = tl.zeros((TILE * TILE,), tl.float32)
    for i in range(0, used):
        c = used - 1 - i
        k = begin + c * CHUNK
        m_k = k + o_k < end
        b_rows = tl.load(IDS + k + o_k, mask=m_k, other=0)
        b_T = tl.load(CHECKPOINTS + (first + c) * (TILE * TILE) + o_p)
        dx, dy, A, B, C, raw, alpha, before, after = _weights(
            SPLATS, b_rows, m_k, px, py, b_T, alpha_max, ALPHA_MIN, T_MIN
        )
        m_f = m_k[:, None] & (o_c < NC)[None, :]
        p_f = b_rows[:, None] * NC + o_c[None, :]
        b_f = tl.load(FEATURES + p_f, mask=m_f, other=0.0)
        gd = tl.dot(b_g, tl.trans(b_f), input_precision="ieee")
        w = alpha * before
        through = w * gd
        total = behind + tl.sum(through, 1)
        suffix = total[:, None] - tl.cumsum(through, 1)
        behind = total
        q = alpha * (before * gd - suffix / (1.0 - alpha))
        q = tl.where(raw < alpha_max, q, 0.0)
        p_s = OF_SPLATS + b_rows * 6
        tl.atomic_add(p_s, tl.sum(q * (A * dx + B * dy), 0), mask=m_k)
        tl.atomic_add(p_s + 1, tl.sum(q * (B * dx + C * dy), 0), mask=m_k)
        tl.atomic_add(p_s + 2, tl.sum(q * dx * dx, 0) * -0.5, mask=m_k)
        tl.atomic_add(p_s + 3, -tl.sum(q * dx * dy, 0), mask=m_k)
        tl.atomic_add(p_s + 4, tl.sum(q * dy * dy, 0) * -0.5, mask=m_k)
        tl.atomic_add(p_s + 5, tl.sum(q, 0), mask=m_k)
        of_f = tl.dot(tl.trans(w), b_g, input_precision="ieee")
        tl.atomic_add(OF_FEATURES + p_f, of_f, mask=m_f)


class CompositeTriton(torch.autograd.Function):
    """The same as `gs_raster.Composite`, in fp32 and for at most MOST_CHANNELS channels."""

    @staticmethod
    def forward(
        ctx: Any, splats: Tensor, features: Tensor, lists: TileLists, alpha_max: float, t_min: float
    ) -> Tensor:
        """Return [lists, p, c] from splats [m, 6] and features [m, c]."""
        splats, features = splats.contiguous(), features.contiguous()
        counts = lists.counts
        chunks = torch.div(counts + CHUNK - 1, CHUNK, rounding_mode="floor")
        first = chunks.cumsum(0) - chunks
        pixels, channels = lists.tile * lists.tile, features.shape[1]
        checkpoints = splats.new_empty(int(chunks.sum()), pixels)
        used = torch.empty(len(counts), dtype=torch.int32, device=splats.device)
        out = splats.new_empty(len(counts), pixels, channels)
        ctx.launch = {
            "tiles": lists.rows * lists.columns,
            "columns": lists.columns,
            "alpha_max": alpha_max,
            "NC": channels,
            "BC": max(16, next_power_of_2(channels)),
            "TILE": lists.tile,
            "CHUNK": CHUNK,
            "ALPHA_MIN": ALPHA_MIN,
            "T_MIN": t_min,
            "num_warps": 4 if pixels <= 64 else 8,
        }
        composite_forward_kernel[(len(counts),)](
            splats,
            features,
            lists.ids,
            lists.offsets,
            first,
            out,
            checkpoints,
            used,
            **ctx.launch,
        )
        ctx.save_for_backward(splats, features, lists.ids, lists.offsets, first, checkpoints, used)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Return the gradients of splats and features."""
        splats, features, ids, offsets, first, checkpoints, used = ctx.saved_tensors
        of_splats, of_features = torch.zeros_like(splats), torch.zeros_like(features)
        composite_backward_kernel[(len(used),)](
            splats,
            features,
            ids,
            offsets,
            first,
            gradients[0].contiguous(),
            checkpoints,
            used,
            of_splats,
            of_features,
            **ctx.launch,
        )
        return of_splats, of_features, None, None, None
