"""Delta correction: dense attention for a few queries repairs the sparse one of their neighbours.

Willette et al. 2025, "Delta Attention" (arXiv:2505.11254). What a sparse mask misses changes slowly
from query to query, so one dense row per group of `stride` queries tells it for the group:

    delta_g = dense(q_a) - sparse_a,   a the anchor of group g
    out_i = sparse_i + delta_(i // stride)

It costs 1/stride of dense attention and helps where neighbours in the order of the tokens are
neighbours in the picture (tiles, a curve); it fails across a border of content inside a group.

Differs from the authors' code: the anchor is the middle of its group, not its first row, because
attention here is not causal.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from skipstep.kernels.dispatch import backend_for, custom_op

__all__ = ["anchors", "delta_correct", "shift_groups_ref"]


def anchors(tokens: int, stride: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the anchor of every group of `stride` tokens: its middle.

    >>> anchors(10, 4)
    tensor([2, 6, 9])
    """
    starts = torch.arange(0, tokens, stride, device=device)
    return starts + (tokens - starts).clamp_max(stride) // 2


def shift_groups_ref(
    x: Float[Tensor, "b h s d"], delta: Float[Tensor, "b h g d"], stride: int
) -> Float[Tensor, "b h s d"]:
    """Return x_i + delta_(i // stride), added in the type of `delta` and rounded to that of `x`."""
    return (x + delta.repeat_interleave(stride, dim=2)[:, :, : x.shape[2]]).to(x.dtype)


def _shape(x: Tensor, delta: Tensor, stride: int, backend: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@custom_op("shift_groups", fake=_shape)
def _shift_groups(x: Tensor, delta: Tensor, stride: int, backend: str) -> Tensor:
    """Return the shifted rows, contiguous."""
    if backend_for("delta_correct", x, delta, backend=backend) == "torch":
        return shift_groups_ref(x, delta, stride).contiguous()
    from skipstep.kernels.delta_triton import shift_groups_triton

    return shift_groups_triton(x, delta, stride)


def delta_correct(
    o_sparse: Float[Tensor, "b h s d"],
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b g t d"],
    v: Float[Tensor, "b g t d"],
    *,
    stride: int = 64,
    scale: float | None = None,
    kv_lens: Int[Tensor, " b"] | None = None,
    backend: str | None = None,
) -> Float[Tensor, "b h s d"]:
    """Return sparse attention shifted by what it misses at the anchors, which become exact.

    Where a gradient is wanted, plain torch runs.

    Args:
        o_sparse: what sparse attention returned for `q`.
        stride: queries per dense row.
        scale: of the logits; 1/sqrt(d) if None.
        kv_lens: keys of each batch entry that count, the first ones; None: all.
        backend: "torch", "triton" or "interpret"; None chooses (`kernels.dispatch`).

    Raises:
        ValueError: if the stride is below 1, shapes do not fit, or the backend cannot serve.

    >>> q = torch.randn(1, 2, 8, 4)
    >>> dense = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    >>> bool((delta_correct(dense * 0, q, q, q, stride=1) - dense).abs().max() < 1e-6)
    True
    """
    if stride < 1:
        raise ValueError(f"delta_correct was given stride {stride}: at least 1 query per dense row")
    if o_sparse.shape != q.shape or k.shape != v.shape or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"delta_correct was given o {tuple(o_sparse.shape)}, q {tuple(q.shape)}, "
            f"k {tuple(k.shape)}, v {tuple(v.shape)}: o is shaped like q and k like v, and the "
            "heads of q are a multiple of theirs"
        )
    places = anchors(q.shape[2], stride, q.device)
    mask = None
    if kv_lens is not None:
        mask = (torch.arange(k.shape[2], device=q.device) < kv_lens[:, None])[:, None, None]
    dense = torch.nn.functional.scaled_dot_product_attention(
        q.index_select(2, places), k, v, mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    delta = dense.to(wide) - o_sparse.index_select(2, places)
    if torch.is_grad_enabled() and (o_sparse.requires_grad or delta.requires_grad):
        return shift_groups_ref(o_sparse, delta, stride)
    shifted: Tensor = _shift_groups(o_sparse, delta, stride, backend or "auto")
    return shifted
