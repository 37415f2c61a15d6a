"""Normalise queries and keys and turn them by their positions, in one pass over both.

n(x)      = x / sqrt(mean of squares + eps) * weight      over a head, or across all heads
x'_a, x'_b = n_a cos - n_b sin,  n_a sin + n_b cos        for each pair (a, b) of channels

Pairs are (2i, 2i + 1) where `interleaved`, else (i, i + d/2). RMS norm: Zhang & Sennrich 2019
(arXiv:1910.07467); rotary positions: Su et al. 2021 (arXiv:2104.09864). Models differ in the pairs
(FLUX interleaves, most language models take halves) and in the norm (Wan: across heads). All is
done in fp32 and rounded once.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from skipstep.kernels.dispatch import backend_for, custom_op

__all__ = ["qk_norm_rope", "qk_norm_rope_ref"]

Angles = Float[Tensor, "n half"] | Float[Tensor, "b n half"]


def norm_rope_ref(
    x: Float[Tensor, "b n h d"],
    weight: Tensor | None,
    cos: Float[Tensor, "b n half"],
    sin: Float[Tensor, "b n half"],
    eps: float,
    interleaved: bool,
    across_heads: bool,
) -> Float[Tensor, "b n h d"]:
    """Return the definition for queries or keys alone."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    over = (2, 3) if across_heads else (3,)
    size = x.shape[2:] if across_heads else x.shape[3:]
    y = x.to(wide)
    y = y * (y.square().mean(over, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * weight.to(wide).reshape(size)
    c, s = cos.to(wide)[:, :, None], sin.to(wide)[:, :, None]
    if interleaved:
        a, b = y[..., 0::2], y[..., 1::2]
        turned = torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)
    else:
        a, b = y.chunk(2, -1)
        turned = torch.cat([a * c - b * s, a * s + b * c], -1)
    return turned.to(x.dtype)


def norm_rope_complex(
    x: Float[Tensor, "b n h d"],
    weight: Tensor | None,
    turn: Tensor,
    eps: float,
    across_heads: bool,
) -> Float[Tensor, "b n h d"]:
    """Compute interleaved pairs as complex numbers, which a CPU turns in one pass."""
    flat = x.flatten(2) if across_heads else x
    y = functional.rms_norm(flat.float(), flat.shape[-1:], None, eps)
    y = (y if weight is None else y * weight.float()).reshape(x.shape)
    pairs = torch.view_as_complex(y.reshape(*x.shape[:3], -1, 2))
    return torch.view_as_real(pairs * turn).reshape(x.shape).to(x.dtype)


def qk_norm_rope_ref(
    q: Float[Tensor, "b n h d"],
    k: Float[Tensor, "b n g d"],
    weight_q: Tensor | None,
    weight_k: Tensor | None,
    cos: Float[Tensor, "b n half"],
    sin: Float[Tensor, "b n half"],
    eps: float,
    interleaved: bool,
    across_heads: bool,
) -> tuple[Float[Tensor, "b n h d"], Float[Tensor, "b n g d"]]:
    """Return the definition in plain torch."""
    return (
        norm_rope_ref(q, weight_q, cos, sin, eps, interleaved, across_heads),
        norm_rope_ref(k, weight_k, cos, sin, eps, interleaved, across_heads),
    )


def _shapes(
    q: Tensor,
    k: Tensor,
    weight_q: Tensor | None,
    weight_k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    interleaved: bool,
    across_heads: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(q, memory_format=torch.contiguous_format),
        torch.empty_like(k, memory_format=torch.contiguous_format),
    )


@custom_op("qk_norm_rope", fake=_shapes)
def _qk_norm_rope(
    q: Tensor,
    k: Tensor,
    weight_q: Tensor | None,
    weight_k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    interleaved: bool,
    across_heads: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if backend_for("qk_norm_rope", q, k, backend=backend) != "torch":
        from skipstep.kernels.qknorm_rope_triton import qk_norm_rope_triton

        options = eps, interleaved, across_heads
        return qk_norm_rope_triton(q, k, weight_q, weight_k, cos, sin, *options)
    if interleaved and q.dtype != torch.float64:
        turn = torch.complex(cos.float(), sin.float())[:, :, None]
        return (
            norm_rope_complex(q, weight_q, turn, eps, across_heads),
            norm_rope_complex(k, weight_k, turn, eps, across_heads),
        )
    out_q, out_k = qk_norm_rope_ref(
        q, k, weight_q, weight_k, cos, sin, eps, interleaved, across_heads
    )
    return out_q.contiguous(), out_k.contiguous()


def qk_norm_rope(
    q: Float[Tensor, "b n h d"],
    k: Float[Tensor, "b n g d"],
    weight_q: Float[Tensor, " w"] | None,
    weight_k: Float[Tensor, " v"] | None,
    cos: Float[Tensor, "n half"] | Float[Tensor, "b n half"],
    sin: Float[Tensor, "n half"] | Float[Tensor, "b n half"],
    *,
    interleaved: bool,
    eps: float = 1e-6,
    across_heads: bool = False,
    backend: str | None = None,
) -> tuple[Float[Tensor, "b n h d"], Float[Tensor, "b n g d"]]:
    """Return normalised and turned queries and keys, as new tensors.

    Where a gradient is wanted, plain torch runs.

    Args:
        weight_q, weight_k: of the norms: [d], or [heads * d] with `across_heads`; None for 1.
        cos, sin: of each pair's angle, for all samples or each.
        interleaved: whether neighbouring channels are a pair, or channels half the head apart.
        across_heads: normalise all heads of a token together.
        backend: "torch", "triton" or "interpret"; None chooses (`kernels.dispatch`).

    Raises ValueError where shapes do not fit or the backend cannot serve.

    >>> q = torch.tensor([3.0, 4.0]).reshape(1, 1, 1, 2)
    >>> cos, sin = torch.zeros(1, 1), torch.ones(1, 1)
    >>> qk_norm_rope(q, q, None, None, cos, sin, interleaved=True, eps=0.0)[0].flatten() * 12.5**0.5
    tensor([-4.,  3.])
    """
    d = q.shape[3]
    sizes = (q.shape[2] * d, k.shape[2] * d) if across_heads else (d, d)
    for weight, size in zip((weight_q, weight_k), sizes, strict=True):
        if weight is not None and tuple(weight.shape) != (size,):
            raise ValueError(
                f"qk_norm_rope was given a weight {tuple(weight.shape)}: expected [{size}]"
            )
    shapes = [(q.shape[1], d // 2), (q.shape[0], q.shape[1], d // 2)]
    if d % 2 or k.shape[3] != d or tuple(cos.shape) not in shapes or cos.shape != sin.shape:
        raise ValueError(
            f"qk_norm_rope was given q {tuple(q.shape)}, k {tuple(k.shape)}, cos "
            f"{tuple(cos.shape)}, sin {tuple(sin.shape)}: angles are [n, d/2] or [b, n, d/2], and "
            "both heads have the same even size"
        )
    cos, sin = (x if x.ndim == 3 else x[None].expand(len(q), -1, -1) for x in (cos, sin))
    flags = eps, interleaved, across_heads
    tensors = (q, k, weight_q, weight_k)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return qk_norm_rope_ref(*tensors, cos, sin, *flags)
    found = _qk_norm_rope(*tensors, cos, sin, *flags, backend or "auto")
    return found[0], found[1]
