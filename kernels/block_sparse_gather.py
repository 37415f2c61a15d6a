"""Block-sparse attention and its gradients in plain torch: gather what a list keeps, then compute.

One step gathers the kept blocks of a few query blocks of one head into two buffers that are used
again, and hands them to torch's own attention. Neighbouring query blocks with equal lists become
one longer block; neighbours with lists of one length share a call. Fresh tensors in place of the
buffers would cost about as much as the attention (docs/kernels.md).
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["KeptBlocks", "gathered_attention", "gathered_gradients"]

TOGETHER = 4
"""Lists of one length that share a call, which costs as much as some tens of rows."""


class KeptBlocks(NamedTuple):
    """Lists on the CPU, for every batch entry and head; `held` are the keys of each block."""

    idx: Int[Tensor, "b h nq longest"]
    cnt: Int[Tensor, "b h nq"]
    held: Int[Tensor, "b nk"]
    block_q: int
    block_k: int


class Run(NamedTuple):
    """Neighbouring query blocks of one head that are served together.

    Args:
        b: batch entry.
        h: head.
        rows: queries; equally many for each list.
        lists: how many they have; several are equally long.
        whole: key blocks that are full of keys, list after list.
        short: first and end row of the other key blocks, where there is one list.
    """

    b: int
    h: int
    rows: slice
    lists: int
    whole: Int[Tensor, " blocks"]
    short: list[tuple[int, int]]


def runs_of(kept: KeptBlocks, n: int, together: int = 1) -> Iterator[Run]:
    """Walk the lists of n queries head by head, up to `together` lists of one length at once."""
    block_q, block_k = kept.block_q, kept.block_k
    idx, whole = whole_blocks_first(kept)
    same = equal_to_the_one_before(idx, kept.cnt).tolist()
    counts, wholes, ends = kept.cnt.tolist(), whole.tolist(), kept.held.tolist()
    for b, h in itertools.product(range(len(counts)), range(len(counts[0]))):
        lists, count, full, is_same = idx[b, h], counts[b][h], wholes[b][h], same[b][h]
        each = lists.unbind(0)
        nq = len(count)
        # Blocks that may share a call: all of their rows are there, all of their keys are whole,
        # and no neighbour has the same list.
        is_free = [
            full[i] == count[i]
            and (i + 1) * block_q <= n
            and not is_same[i]
            and not (i + 1 < nq and is_same[i + 1])
            for i in range(nq)
        ]
        first = 0
        while first < nq:
            last, split = first + 1, full[first]
            while last < nq and is_same[last]:
                last += 1
            chosen, short, number = each[first], [], 1
            if split < count[first]:
                others = chosen[split : count[first]].tolist()
                short = [(j * block_k, j * block_k + ends[b][j]) for j in others]
            elif is_free[first]:
                end = min(nq, first + together)
                while last < end and is_free[last] and count[last] == split:
                    last += 1
                number = last - first
            if number > 1:
                chosen = lists[first:last, :split].reshape(-1)
            elif split < len(chosen):
                chosen = chosen[:split]
            yield Run(b, h, slice(first * block_q, last * block_q), number, chosen, short)
            first = last


def attend(
    q: Float[Tensor, "g h n d"],
    k: Float[Tensor, "g h m d"],
    v: Float[Tensor, "g h m d"],
    scale: float,
) -> tuple[Float[Tensor, "g h n d"], Float[Tensor, "g h n"]]:
    """Return dense attention and its log-sum-exp."""
    if q.device.type == "cpu":
        o, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
            q, k, v, 0.0, False, scale=scale
        )
        return o, lse
    s = (q @ k.mT).float() * scale
    return torch.softmax(s, -1).to(v.dtype) @ v, s.logsumexp(-1)


class Buffers:
    """Memory for the keys or values of a few lists, and views of it that are made once each.

    A view costs a few microseconds, as much as some rows of attention.
    """

    def __init__(self, like: Tensor, blocks: int, block_k: int) -> None:
        self.blocks = like.new_empty(blocks, block_k * like.shape[-1])
        self.rows = self.blocks.view(-1, like.shape[-1])
        self.views: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def of(self, lists: int, blocks: int, rows: int) -> tuple[Tensor, Tensor]:
        """Return the first blocks, to write to, and the first rows as [lists, 1, m, d]."""
        key = lists, rows
        if key not in self.views:
            read = self.rows[:rows].view(lists, 1, rows // lists, -1)
            self.views[key] = self.blocks[:blocks], read
        return self.views[key]


def gathered_attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b hk m d"],
    v: Float[Tensor, "b hk m d"],
    kept: KeptBlocks,
    scale: float,
) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h n"]]:
    """Attend to the kept blocks; the log-sum-exp is in fp32, of float64 in float64."""
    (batch, heads, n, d), kv_heads, block_k = q.shape, k.shape[1], kept.block_k
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    o = torch.empty_like(q)
    lse = torch.empty(batch, heads, n, dtype=wide, device=q.device)
    longest = int(kept.cnt.max()) if kept.cnt.numel() else 0
    k_kept, v_kept = (Buffers(x, TOGETHER * longest, block_k) for x in (k, v))
    head = None
    for run in runs_of(kept, n, TOGETHER):
        if head != (run.b, run.h):
            head = run.b, run.h
            queries, output, sums = q[head], o[head], lse[head]
            of_head = run.b, run.h * kv_heads // heads
            keys, values = k[of_head], v[of_head]
            k_blocks, v_blocks = in_blocks(keys, block_k), in_blocks(values, block_k)
        whole, lists = run.whole.to(q.device), run.lists
        filled = len(whole)
        end = filled * block_k + sum(stop - start for start, stop in run.short)
        if not end:
            output[run.rows], sums[run.rows] = 0, -math.inf
            continue
        k_write, k_i = k_kept.of(lists, filled, end)
        v_write, v_i = v_kept.of(lists, filled, end)
        if filled:
            torch.index_select(k_blocks, 0, whole, out=k_write)
            torch.index_select(v_blocks, 0, whole, out=v_write)
        place = filled * block_k
        for start, stop in run.short:
            k_kept.rows[place : place + stop - start] = keys[start:stop]
            v_kept.rows[place : place + stop - start] = values[start:stop]
            place += stop - start
        rows = queries[run.rows]
        o_i, lse_i = attend(rows.view(lists, 1, len(rows) // lists, d), k_i, v_i, scale)
        output[run.rows], sums[run.rows] = o_i.reshape(-1, d), lse_i.reshape(-1)
    return o, lse


def in_blocks(x: Float[Tensor, "m d"], block: int) -> Float[Tensor, "blocks block_d"]:
    """Return the blocks of rows that are whole, one to a row."""
    count = len(x) // block
    return x[: count * block].reshape(count, block * x.shape[1])


def gathered_gradients(
    do: Float[Tensor, "b h n d"],
    delta: Float[Tensor, "b h n"],
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b hk m d"],
    v: Float[Tensor, "b hk m d"],
    lse: Float[Tensor, "b h n"],
    kept: KeptBlocks,
    scale: float,
) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b hk m d"], Float[Tensor, "b hk m d"]]:
    """Return the gradients of q, k and v in the type of `lse`.

    p = exp(s - lse),  ds = p * (do v^T - delta) * scale,  delta = rowsum(do * o) - dlse
    dq = ds k,  dk = ds^T q,  dv = p^T do
    """
    wide = lse.dtype
    dq, dk, dv = (torch.zeros_like(x, dtype=wide) for x in (q, k, v))
    inside = torch.arange(kept.block_k)
    for run in runs_of(kept, q.shape[2]):
        parts = [(run.whole[:, None] * kept.block_k + inside).flatten()]
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
    kept: KeptBlocks,
) -> tuple[Int[Tensor, "b h nq longest"], Int[Tensor, "b h nq"]]:
    """Put the blocks that are full of keys first in every list; return the lists and their number.

    Entries behind a list become 0, so that they may be read and compared.
    """
    idx, cnt, held, _, block_k = kept
    is_listed = torch.arange(idx.shape[-1]) < cnt[..., None]
    idx = torch.where(is_listed, idx, 0).long()
    if bool((held == block_k).all()):
        return idx, cnt
    b = torch.arange(idx.shape[0])[:, None, None, None]
    rank = torch.where(is_listed, (held[b, idx] != block_k).byte(), 2)
    rank, place = rank.sort(dim=-1, stable=True)
    return idx.gather(-1, place), (rank == 0).sum(-1)


def equal_to_the_one_before(
    idx: Int[Tensor, "b h nq longest"], cnt: Int[Tensor, "b h nq"]
) -> Bool[Tensor, "b h nq"]:
    """Say which lists equal that of the query block before, entry by entry."""
    same = torch.zeros(cnt.shape, dtype=torch.bool)
    same[..., 1:] = (cnt[..., 1:] == cnt[..., :-1]) & (idx[..., 1:, :] == idx[..., :-1, :]).all(-1)
    return same
