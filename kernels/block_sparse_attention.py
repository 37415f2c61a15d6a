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

On a CPU one call gathers the kept blocks of one head and query block into two buffers that are used
again, and hands them to torch's own attention; neighbouring query blocks with equal lists go
together.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from skipstep.kernels.block_layout import BlockLists, blocks_of, from_bool
from skipstep.kernels.dispatch import backend_for, custom_op, or_torch, upcast_dot
from skipstep.kernels.tuning import architecture, pick

__all__ = ["block_sparse_attention", "block_sparse_attention_ref", "merge"]

Layout = Literal["BHND", "BNHD"]


def valid_rows(
    batch: int,
    length: int,
    blocks_k: int,
    block_k: int,
    kv_valid: Int[Tensor, " nk"] | None,
    kv_lens: Int[Tensor, " b"] | None,
) -> Int[Tensor, "b nk"]:
    """Return how many leading rows of each key block hold keys, on the CPU."""
    start = torch.arange(blocks_k) * block_k
    ends = torch.full((batch, 1), length) if kv_lens is None else kv_lens.cpu().long()[:, None]
    rows = (ends.clamp_max(length) - start).clamp(0, block_k)
    return rows if kv_valid is None else rows.minimum(kv_valid.cpu().long())


def keys_inside(
    lists: BlockLists, batch: int, m: int, kv_lens: Int[Tensor, " b"] | None
) -> Bool[Tensor, "b m"]:
    """Say which keys are not padding, on the lists' device."""
    position = torch.arange(m, device=lists.idx.device)
    inside = torch.ones(batch, m, dtype=torch.bool, device=lists.idx.device)
    if kv_lens is not None:
        inside = position < kv_lens[:, None]
    if lists.kv_valid is not None:
        block = position // lists.block_k
        inside = inside & (position - block * lists.block_k < lists.kv_valid[block])
    return inside


def kept_keys(
    lists: BlockLists, n: int, m: int, batch: int, kv_lens: Int[Tensor, " b"] | None = None
) -> Bool[Tensor, "b h n m"]:
    """Return which keys each query attends to: the lists, token by token."""
    kept = lists.to_bool().repeat_interleave(lists.block_q, 2)[:, :, :n]
    kept = kept.repeat_interleave(lists.block_k, 3)[..., :m]
    return kept & keys_inside(lists, batch, m, kv_lens)[:, None, None]


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


def attend(
    q: Float[Tensor, "n d"], k: Float[Tensor, "m d"], v: Float[Tensor, "m d"], scale: float
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """Return dense attention of one head and its log-sum-exp."""
    if q.device.type == "cpu":
        o, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[None, None], k[None, None], v[None, None], scale=scale
        )
        return o[0, 0], lse[0, 0]
    s = (q @ k.T).float() * scale
    return torch.softmax(s, -1).to(v.dtype) @ v, s.logsumexp(-1)


class Run(NamedTuple):
    """Neighbouring query blocks of one head with equal lists: their rows, and what they keep."""

    b: int
    h: int
    rows: slice
    whole: Int[Tensor, " count"]
    short: list[tuple[int, int]]


def runs_of(
    idx: Int[Tensor, "b h nq longest"],
    cnt: Int[Tensor, "b h nq"],
    held: Int[Tensor, "b nk"],
    block_q: int,
    block_k: int,
) -> Iterator[Run]:
    """Walk the lists head by head: blocks full of keys, and (first, end) rows of shorter ones."""
    idx, whole = whole_blocks_first(idx, cnt, held, block_k)
    same = equal_to_the_one_before(idx, cnt).tolist()
    counts, wholes, ends = cnt.tolist(), whole.tolist(), held.tolist()
    for b, h in itertools.product(range(cnt.shape[0]), range(cnt.shape[1])):
        first = 0
        while first < cnt.shape[2]:
            last = first + 1
            while last < cnt.shape[2] and same[b][h][last]:
                last += 1
            chosen, split = idx[b, h, first], wholes[b][h][first]
            short = [
                (j * block_k, j * block_k + ends[b][j])
                for j in chosen[split : counts[b][h][first]].tolist()
            ]
            yield Run(b, h, slice(first * block_q, last * block_q), chosen[:split], short)
            first = last


def gathered_attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b hk m d"],
    v: Float[Tensor, "b hk m d"],
    idx: Int[Tensor, "b h nq longest"],
    cnt: Int[Tensor, "b h nq"],
    held: Int[Tensor, "b nk"],
    block_q: int,
    block_k: int,
    scale: float,
) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h n"]]:
    """Compute in plain torch: gather the kept rows of one head and query block, then attend."""
    (batch, heads, n, d), (kv_heads, m) = q.shape, k.shape[1:3]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    o = torch.empty_like(q)
    lse = torch.empty(batch, heads, n, dtype=wide, device=q.device)
    longest = int(cnt.max()) if cnt.numel() else 0
    k_kept = torch.empty(longest * block_k, d, dtype=k.dtype, device=q.device)
    v_kept = torch.empty_like(k_kept)
    blocks = m // block_k
    head = None
    for run in runs_of(idx, cnt, held, block_q, block_k):
        if head != (run.b, run.h * kv_heads // heads):
            head = (run.b, run.h * kv_heads // heads)
            keys, values = k[head], v[head]
            k_blocks = keys[: blocks * block_k].reshape(blocks, block_k * d)
            v_blocks = values[: blocks * block_k].reshape(blocks, block_k * d)
        end = len(run.whole) * block_k
        if end:
            whole = run.whole.to(q.device)
            torch.index_select(k_blocks, 0, whole, out=k_kept[:end].view(-1, block_k * d))
            torch.index_select(v_blocks, 0, whole, out=v_kept[:end].view(-1, block_k * d))
        for start, stop in run.short:
            k_kept[end : end + stop - start] = keys[start:stop]
            v_kept[end : end + stop - start] = values[start:stop]
            end += stop - start
        here = run.b, run.h, run.rows
        if end:
            o[here], lse[here] = attend(q[here], k_kept[:end], v_kept[:end], scale)
        else:
            o[here], lse[here] = 0, -math.inf
    return o, lse


def gathered_gradients(
    do: Float[Tensor, "b h n d"],
    delta: Float[Tensor, "b h n"],
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b hk m d"],
    v: Float[Tensor, "b hk m d"],
    lse: Float[Tensor, "b h n"],
    idx: Int[Tensor, "b h nq longest"],
    cnt: Int[Tensor, "b h nq"],
    held: Int[Tensor, "b nk"],
    block_q: int,
    block_k: int,
    scale: float,
) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b hk m d"], Float[Tensor, "b hk m d"]]:
    """Compute the gradients of q, k and v in plain torch, in the type of `lse`.

    p = exp(s - lse),  ds = p * (do v^T - delta) * scale,  delta = rowsum(do * o) - dlse
    dq = ds k,  dk = ds^T q,  dv = p^T do
    """
    wide = lse.dtype
    dq, dk, dv = (torch.zeros_like(x, dtype=wide) for x in (q, k, v))
    inside = torch.arange(block_k)
    for run in runs_of(idx, cnt, held, block_q, block_k):
        parts = [(run.whole[:, None] * block_k + inside).flatten()]
        positions = torch.cat(parts + [torch.arange(*ends) for ends in run.short]).to(q.device)
        if not len(positions):
            continue
        here, head = (run.b, run.h, run.rows), (run.b, run.h * k.shape[1] // q.shape[1])
        q_i, do_i = q[here].to(wide), do[here].to(wide)
        k_j, v_j = (x[head].index_select(0, positions).to(wide) for x in (k, v))
        p = (q_i @ k_j.T * scale - lse[here][:, None]).exp()
        ds = p * (do_i @ v_j.T - delta[here][:, None]) * scale
        dq[here] = ds @ k_j
        dk[head].index_add_(0, positions, ds.T @ q_i)
        dv[head].index_add_(0, positions, p.T @ do_i)
    return dq, dk, dv


def whole_blocks_first(
    idx: Int[Tensor, "b h nq longest"],
    cnt: Int[Tensor, "b h nq"],
    held: Int[Tensor, "b nk"],
    block_k: int,
) -> tuple[Int[Tensor, "b h nq longest"], Int[Tensor, "b h nq"]]:
    """Put the blocks that are full of keys first in every list; return the lists and their number.

    Entries behind a list become 0, so that they may be read and compared.
    """
    kept = torch.arange(idx.shape[-1]) < cnt[..., None]
    idx = torch.where(kept, idx, 0).long()
    if bool((held == block_k).all()):
        return idx, cnt
    b = torch.arange(idx.shape[0])[:, None, None, None]
    rank = torch.where(kept, (held[b, idx] != block_k).byte(), 2)
    rank, place = rank.sort(dim=-1, stable=True)
    return idx.gather(-1, place), (rank == 0).sum(-1)


def equal_to_the_one_before(
    idx: Int[Tensor, "b h nq longest"], cnt: Int[Tensor, "b h nq"]
) -> Bool[Tensor, "b h nq"]:
    """Say which lists equal that of the query block before, entry by entry."""
    same = torch.zeros(cnt.shape, dtype=torch.bool)
    same[..., 1:] = (cnt[..., 1:] == cnt[..., :-1]) & (idx[..., 1:, :] == idx[..., :-1, :]).all(-1)
    return same


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
        return gathered_attention(q, k, v, idx.cpu(), cnt.cpu(), held, block_q, block_k, scale)

    if chosen == "torch":
        return plain()
    from skipstep.kernels.block_sparse_attention_triton import launch_attention

    return or_torch(
        name,
        q.device,
        lambda: launch_attention(
            q,
            k,
            v,
            idx if idx.stride(-1) == 1 else idx.contiguous(),
            cnt,
            order,
            kv_valid,
            kv_lens,
            block_q=block_q,
            block_k=block_k,
            scale=scale,
            skip_log2=math.log2(skip_below) if skip_below > 0 else None,
            tiles=pick(
                name,
                d=q.shape[-1],
                dtype=q.dtype,
                sm=architecture(q.device),
                block_q=block_q,
                block_k=block_k,
            ),
            upcast_dot=upcast_dot(chosen, q.dtype),
            precision=dot_precision(),
        ),
        plain,
    )


def unserved(q: Tensor) -> str | None:
    """Say why the kernel cannot serve queries of this shape, if it cannot."""
    if q.shape[-1] > 256:
        return f"the head dim is {q.shape[-1]}, the kernel takes at most 256"
    return None


def dot_precision() -> str:
    """Return how a kernel multiplies fp32 numbers: as torch does for matrix products."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _gradient_shapes(
    do: Tensor, delta: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: object
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


@custom_op("block_sparse_attention_backward", fake=_gradient_shapes)
def _gradients(
    do: Tensor,
    delta: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    idx: Tensor,
    cnt: Tensor,
    kv_valid: Tensor | None,
    kv_lens: Tensor | None,
    block_q: int,
    block_k: int,
    blocks_k: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k and v."""
    name = "block_sparse_attention_backward"
    chosen = backend_for(name, q, k, v, backend=backend, unserved=unserved(q))
    batch, heads = q.shape[:2]

    def plain() -> tuple[Tensor, Tensor, Tensor]:
        rows = idx.cpu().expand(batch, heads, -1, -1), cnt.cpu().expand(batch, heads, -1)
        held = valid_rows(batch, k.shape[2], blocks_k, block_k, kv_valid, kv_lens)
        return gathered_gradients(do, delta, q, k, v, lse, *rows, held, block_q, block_k, scale)

    def kernel() -> tuple[Tensor, Tensor, Tensor]:
        from skipstep.kernels.block_sparse_attention_triton import launch_gradients

        columns = from_bool(BlockLists(idx, cnt, blocks_k).to_bool().transpose(2, 3).contiguous())
        rows, columns_idx = (x if x.stride(-1) == 1 else x.contiguous() for x in (idx, columns.idx))
        return launch_gradients(
            do,
            delta,
            q,
            k,
            v,
            lse,
            (rows.expand(batch, heads, -1, -1), cnt.expand(batch, heads, -1)),
            (columns_idx.expand(batch, heads, -1, -1), columns.cnt.expand(batch, heads, -1)),
            kv_valid,
            kv_lens,
            block_q=block_q,
            block_k=block_k,
            scale=scale,
            tiles=pick(
                name,
                d=q.shape[-1],
                dtype=q.dtype,
                sm=architecture(q.device),
                block_q=block_q,
                block_k=block_k,
            ),
            upcast_dot=upcast_dot(chosen, q.dtype),
            precision=dot_precision(),
        )

    found = plain() if chosen == "torch" else or_torch(name, q.device, kernel, plain)
    dq, dk, dv = (torch.empty_like(x).copy_(dx) for x, dx in zip((q, k, v), found, strict=True))
    return dq, dk, dv


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, idx, cnt, _, kv_valid, kv_lens, *ctx.numbers, _, ctx.backend = inputs
    ctx.save_for_backward(q, k, v, *output, idx, cnt, kv_valid, kv_lens)


def _backward(ctx: Any, do: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, o, lse, *lists = ctx.saved_tensors
    delta = (do.to(lse.dtype) * o.to(lse.dtype)).sum(-1) - dlse
    found = _gradients(do, delta, q, k, v, lse, *lists, *ctx.numbers, ctx.backend)
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
