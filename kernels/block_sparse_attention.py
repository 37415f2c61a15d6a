"""Attention over lists of kept key blocks (exact inside them, blind outside).

With I(i) the rows of the key blocks that the list of query row i keeps:

s_ij = scale * q_i . k_j                       for j in I(i)
lse_i = log sum_{j in I(i)} exp(s_ij)          natural log; -inf where I(i) is empty
o_i = sum_{j in I(i)} exp(s_ij - lse_i) v_j    0 where I(i) is empty

Two results over disjoint lists join to the result over their union by their lse (`merge`), and full
lists give scaled dot-product attention. Work falls with the density; a GPU kernel keeps its speed
per block, a CPU reaches the shares that docs/kernels.md gives. Lengths need not divide by the
blocks; keys that are padding are cut off by `kv_lens` (the end of a batch entry) or by
`BlockLists.kv_valid` (the end of each block).

What runs on a CPU is in `block_sparse_gather`, the gradients are in `block_sparse_gradients`.
"""

import math
from typing import Any, Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from skipstep.kernels.block_layout import BlockLists, blocks_of
from skipstep.kernels.block_sparse_gather import KeptBlocks, gathered_attention
from skipstep.kernels.block_sparse_gradients import block_sparse_gradients
from skipstep.kernels.dispatch import backend_for, custom_op, dot_precision, or_torch, upcast_dot
from skipstep.kernels.kept_keys import kept_keys, valid_rows
from skipstep.kernels.tuning import pick_for, unserved

__all__ = ["block_sparse_attention", "block_sparse_attention_ref", "merge"]

Layout = Literal["BHND", "BNHD"]


def block_sparse_attention_ref(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b hk m d"],
    v: Float[Tensor, "b hk m d"],
    lists: BlockLists,
    *,
    scale: float | None = None,
    kv_lens: Int[Tensor, " b"] | None = None,
) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h n"]]:
    """Return the definition, with all n*m scores in memory, in the type of the inputs."""
    group = q.shape[1] // k.shape[1]
    kept = kept_keys(lists, q.shape[2], k.shape[2], q.shape[0], kv_lens)
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    s = (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    s = s.masked_fill(~kept, -math.inf)
    lse = s.logsumexp(-1)
    p = torch.where(kept, (s - lse[..., None]).exp(), 0)
    # A key that nobody keeps may hold anything, also what is not a number.
    seen = kept.any(2)[..., None]
    return p @ torch.where(seen, v, 0), lse


def merge(
    first: tuple[Float[Tensor, "*rows d"], Float[Tensor, "*rows"]],
    second: tuple[Float[Tensor, "*rows d"], Float[Tensor, "*rows"]],
) -> tuple[Float[Tensor, "*rows d"], Float[Tensor, "*rows"]]:
    """Join two (output, lse) over disjoint sets of keys into that over both.

    >>> ones, lse = torch.ones(1, 2), torch.zeros(1)
    >>> merge((ones, lse), (3 * ones, lse))
    (tensor([[2., 2.]]), tensor([0.6931]))
    """
    (o_1, lse_1), (o_2, lse_2) = first, second
    lse = torch.logaddexp(lse_1, lse_2)
    # Rows that see no key on either side: -inf minus -inf.
    base = lse.masked_fill(lse == -math.inf, 0)
    w_1, w_2 = (lse_1 - base).exp()[..., None], (lse_2 - base).exp()[..., None]
    return (w_1 * o_1 + w_2 * o_2).to(o_1.dtype), lse


def _attention_shapes(q: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=wide)


@custom_op("block_sparse_attention", fake=_attention_shapes)
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    idx: Tensor,
    cnt: Tensor,
    order: Tensor | None,
    kv_valid: Tensor | None,
    kv_lens: Tensor | None,
    block_q: int,
    block_k: int,
    blocks_k: int,
    scale: float,
    skip_below: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Compute on [b, h, n, d] tensors of any strides."""
    name = "block_sparse_attention"
    chosen = backend_for(name, q, k, v, backend=backend, unserved=unserved(q))
    batch, heads = q.shape[:2]
    idx, cnt = idx.expand(batch, heads, -1, -1), cnt.expand(batch, heads, -1)

    def plain() -> tuple[Tensor, Tensor]:
        held = valid_rows(batch, k.shape[2], blocks_k, block_k, kv_valid, kv_lens)
        kept = KeptBlocks(idx.cpu(), cnt.cpu(), held, block_q, block_k)
        return gathered_attention(q, k, v, kept, scale)

    def kernel() -> tuple[Tensor, Tensor]:
        from skipstep.kernels.block_sparse_attention_triton import launch_attention

        rows = idx if idx.stride(-1) == 1 else idx.contiguous()
        return launch_attention(
            *(q, k, v, rows, cnt, order, kv_valid, kv_lens),
            block_q=block_q,
            block_k=block_k,
            scale=scale,
            skip_log2=math.log2(skip_below) if skip_below > 0 else None,
            tiles=pick_for(name, q, block_q, block_k),
            upcast_dot=upcast_dot(chosen, q.dtype),
            precision=dot_precision(),
        )

    return plain() if chosen == "torch" else or_torch(name, q.device, kernel, plain)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, idx, cnt, _, kv_valid, kv_lens, *ctx.numbers, _, ctx.backend = inputs
    ctx.save_for_backward(q, k, v, *output, idx, cnt, kv_valid, kv_lens)


def _backward(ctx: Any, do: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, o, lse, *lists = ctx.saved_tensors
    delta = (do.to(lse.dtype) * o.to(lse.dtype)).sum(-1) - dlse
    found = block_sparse_gradients(do, delta, q, k, v, lse, *lists, *ctx.numbers, ctx.backend)
    return *found, *([None] * 11)


_attention.register_autograd(_backward, setup_context=_save)


def check_inputs(
    q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, kv_lens: Tensor | None
) -> None:
    """Raise ValueError where shapes, types or lists do not fit [b, h, n, d] tensors."""
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.ndim != 4 or k.shape != v.shape or q.shape[::3] != k.shape[::3]:
        raise ValueError(
            f"block_sparse_attention was given {shapes} (as [b, h, n, d]): all have 4 axes, k and "
            "v are alike, and batch and head dim are those of q"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"block_sparse_attention was given {q.shape[1]} query heads for {k.shape[1]} key "
            "heads: the first must be a multiple of the second"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"block_sparse_attention was given {q.dtype}, {k.dtype} and {v.dtype}: use one type"
        )
    wanted = (blocks_of(q.shape[2], lists.block_q), blocks_of(k.shape[2], lists.block_k))
    given = (lists.blocks_q, lists.blocks_k)
    if given != wanted:
        raise ValueError(
            f"block_sparse_attention was given lists of {given[0]} query and {given[1]} key blocks "
            f"for {shapes}: blocks of {lists.block_q} x {lists.block_k} rows make {wanted[0]} and "
            f"{wanted[1]}; build the lists for these lengths"
        )
    if lists.cnt.shape[0] not in (1, q.shape[0]) or lists.cnt.shape[1] not in (1, q.shape[1]):
        raise ValueError(
            f"block_sparse_attention was given lists for batch and heads "
            f"{tuple(lists.cnt.shape[:2])} and q for {tuple(q.shape[:2])}: equal, or 1 to share"
        )
    if kv_lens is not None and kv_lens.shape != q.shape[:1]:
        raise ValueError(
            f"block_sparse_attention was given kv_lens {tuple(kv_lens.shape)} for a batch of "
            f"{q.shape[0]}: one length per batch entry"
        )


@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: BlockLists,
    *,
    scale: float | None = None,
    kv_lens: Tensor | None = None,
    return_lse: Literal[False] = False,
    skip_below: float | None = None,
    layout: Layout = "BHND",
    backend: str | None = None,
) -> Tensor: ...
@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: BlockLists,
    *,
    scale: float | None = None,
    kv_lens: Tensor | None = None,
    return_lse: Literal[True],
    skip_below: float | None = None,
    layout: Layout = "BHND",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...
def block_sparse_attention(
    q: Float[Tensor, "b _ _ d"],
    k: Float[Tensor, "b _ _ d"],
    v: Float[Tensor, "b _ _ d"],
    lists: BlockLists,
    *,
    scale: float | None = None,
    kv_lens: Int[Tensor, " b"] | None = None,
    return_lse: bool = False,
    skip_below: float | None = None,
    layout: Layout = "BHND",
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Float[Tensor, "b h n"]]:
    """Attend to the listed key blocks; return the output in the layout of q.

    Args:
        q: queries, [b, h, n, d] or as `layout` says; any strides, any number of rows.
        k: keys, [b, hk, m, d]; their heads divide those of q (grouped queries).
        v: values, shaped as k.
        lists: the kept key blocks.
        scale: of the scores; None: 1 / sqrt(d).
        kv_lens: keys of each batch entry that count, the first ones; None: all m.
        return_lse: return (output, log-sum-exp [b, h, n]) instead, in natural log.
        skip_below: allow the kernel to pass over a block whose weights are all below this share of
            the largest seen so far in their rows (BLASST); None and the torch path pass over none.
        layout: "BNHD" where heads follow tokens, as diffusers has them.
        backend: "torch", "triton" or "interpret"; None chooses (`kernels.dispatch`).

    Raises ValueError where shapes, types or lists do not fit, and where the backend cannot serve.

    >>> from skipstep.kernels.block_layout import all_blocks
    >>> x = torch.ones(1, 2, 100, 16)
    >>> block_sparse_attention(x, x, x, all_blocks(100, 100)).shape
    torch.Size([1, 2, 100, 16])
    """
    if layout not in ("BHND", "BNHD"):
        raise ValueError(f"block_sparse_attention: layout {layout!r} is not 'BHND' or 'BNHD'")
    if layout == "BNHD":
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    check_inputs(q, k, v, lists, kv_lens)
    o, lse = _attention(
        q,
        k,
        v,
        lists.idx,
        lists.cnt,
        lists.order,
        lists.kv_valid,
        kv_lens,
        lists.block_q,
        lists.block_k,
        lists.blocks_k,
        q.shape[-1] ** -0.5 if scale is None else scale,
        0.0 if skip_below is None else skip_below,
        backend or "auto",
    )
    if layout == "BNHD":
        o = o.transpose(1, 2)
    return (o, lse) if return_lse else o
