"""Lists of kept key blocks: the one data structure of every sparse attention here.

Queries are cut in blocks of `block_q` rows, keys in blocks of `block_k` rows. For each batch entry,
head and query block, `idx[b, h, i, :cnt[b, h, i]]` names the key blocks that its rows attend to;
what stands behind is never read. A kernel walks a list and touches nothing else, so its work is the
number of kept blocks, where a scan of a boolean map would cost one load per block, kept or not.

Axes of size 1 in batch and heads are shared by all (a static mask is one list per query block).
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = [
    "BlockLists",
    "all_blocks",
    "blocks_of",
    "from_bool",
    "from_topk",
    "from_topp",
    "longest_first",
    "union",
]


@dataclass(frozen=True, eq=False)
class BlockLists:
    """Kept key blocks per query block.

    Args:
        idx: key blocks, [b or 1, h or 1, nq, longest list]; entries from cnt on are never read.
        cnt: how many of them count; 0 gives rows of zeros with a log-sum-exp of -inf.
        blocks_k: number of key blocks, kept or not.
        block_q: rows of a query block.
        block_k: rows of a key block.
        order: in which order a GPU takes up the b*h*nq lists, each once; None: as they lie.
        kv_valid: rows of each key block that hold keys, the first ones; None: all of them.
    """

    idx: Int32[Tensor, "b h nq longest"]
    cnt: Int32[Tensor, "b h nq"]
    blocks_k: int
    block_q: int = 128
    block_k: int = 64
    order: Int32[Tensor, " lists"] | None = None
    kv_valid: Int32[Tensor, " nk"] | None = None

    @property
    def blocks_q(self) -> int:
        """Number of query blocks."""
        return self.cnt.shape[2]

    def to(self, device: torch.device | str) -> "BlockLists":
        """Return the same lists on a device."""
        return replace(
            self,
            idx=self.idx.to(device),
            cnt=self.cnt.to(device),
            order=None if self.order is None else self.order.to(device),
            kv_valid=None if self.kv_valid is None else self.kv_valid.to(device),
        )

    def density(self) -> Float[Tensor, ""]:
        """Return the share of block pairs that is kept, 0 to 1, on the lists' device."""
        return self.cnt.float().mean() / max(self.blocks_k, 1)

    def to_bool(self) -> Bool[Tensor, "b h nq nk"]:
        """Return the map of kept blocks."""
        b, h, nq, longest = self.idx.shape
        kept = torch.arange(longest, device=self.idx.device) < self.cnt[..., None]
        # What lies behind a list is written to a spare column that is cut off.
        where = torch.where(kept, self.idx, self.blocks_k).long()
        map_ = torch.zeros(b, h, nq, self.blocks_k + 1, dtype=torch.bool, device=self.idx.device)
        return map_.scatter_(-1, where, True)[..., : self.blocks_k]

    def coarsen(self, factor: int) -> "BlockLists":
        """Join `factor` query blocks into one that keeps every block that one of them kept."""
        if factor < 1:
            raise ValueError(f"coarsen was given {factor}: join at least 1 query block")
        map_ = self.to_bool()
        b, h, nq, nk = map_.shape
        padding = map_.new_zeros(b, h, -nq % factor, nk)
        joined = torch.cat([map_, padding], 2).view(b, h, -1, factor, nk).any(3)
        lists = from_bool(joined, block_q=self.block_q * factor, block_k=self.block_k)
        return replace(lists, kv_valid=self.kv_valid)

    def to_flex_blockmask(self, query_length: int, key_length: int) -> "BlockMask":
        """Return the BlockMask of the same pattern for compiled flex_attention, to compare with.

        It carries a mask function: eager flex_attention ignores the lists of a mask without one
        and computes dense attention.
        """
        from torch.nn.attention.flex_attention import BlockMask

        if self.kv_valid is not None:
            raise ValueError("to_flex_blockmask: flex_attention has no short blocks (kv_valid)")
        map_ = self.to_bool()
        block_q, block_k = self.block_q, self.block_k

        def kept(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return map_[b, h, q // block_q, k // block_k]

        order = map_.int().argsort(dim=-1, descending=True, stable=True).int()
        return BlockMask.from_kv_blocks(
            map_.sum(-1, dtype=torch.int32),
            order,
            BLOCK_SIZE=(block_q, block_k),
            mask_mod=kept,
            seq_lengths=(query_length, key_length),
        )


def from_bool(
    mask: Bool[Tensor, "b h nq nk"], *, block_q: int = 128, block_k: int = 64
) -> BlockLists:
    """Make lists, in ascending order, of a map of kept blocks.

    >>> lists = from_bool(torch.tensor([[[[True, False, True], [False, False, False]]]]))
    >>> lists.cnt.tolist(), lists.idx[0, 0, 0, :2].tolist()
    ([[[2, 0]]], [0, 2])
    """
    order = mask.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    return BlockLists(
        idx=order.int(),
        cnt=mask.sum(-1, dtype=torch.int32),
        blocks_k=mask.shape[-1],
        block_q=block_q,
        block_k=block_k,
    )


def from_topk(
    scores: Float[Tensor, "b h nq nk"], k: int, *, block_q: int = 128, block_k: int = 64
) -> BlockLists:
    """Keep the k blocks of each row with the highest scores, all of them where k exceeds nk."""
    if k < 1:
        raise ValueError(f"from_topk was given k={k}: keep at least 1 block per row")
    kept = min(k, scores.shape[-1])
    idx = scores.topk(kept, dim=-1, sorted=False).indices.sort(-1).values.int()
    cnt = torch.full(scores.shape[:-1], kept, dtype=torch.int32, device=scores.device)
    return BlockLists(idx, cnt, scores.shape[-1], block_q, block_k)


def from_topp(
    scores: Float[Tensor, "b h nq nk"],
    p: float,
    *,
    min_keep: int = 1,
    block_q: int = 128,
    block_k: int = 64,
) -> BlockLists:
    """Keep the fewest blocks of each row whose share of the row's sum reaches p.

    The block that crosses p is kept: stopping before it misses the mass that was asked for.

    Args:
        scores: not negative; a row need not sum to one. A row of zeros keeps `min_keep` blocks.
        p: 0 to 1.
        min_keep: at least so many, at most nk.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"from_topp was given p={p}: a share of the mass lies in 0 to 1")
    if min_keep < 1:
        raise ValueError(f"from_topp was given min_keep={min_keep}: keep at least 1 block per row")
    nk = scores.shape[-1]
    mass, idx = scores.sort(-1, descending=True)
    mass = mass.double()
    before = mass.cumsum(-1) - mass
    total = mass.sum(-1, keepdim=True)
    # A block is needed while those before it have not reached p; none is without mass.
    needed = (before < p * total) & (mass > 0)
    cnt = needed.sum(-1, dtype=torch.int32).clamp_min(min(min_keep, nk))
    return BlockLists(idx.int(), cnt, nk, block_q, block_k)


def union(first: BlockLists, second: BlockLists) -> BlockLists:
    """Keep what one of two keeps; both must cut queries and keys alike."""
    a = (first.block_q, first.block_k, first.blocks_q, first.blocks_k)
    b = (second.block_q, second.block_k, second.blocks_q, second.blocks_k)
    if a != b:
        raise ValueError(
            f"union was given (block_q, block_k, blocks_q, blocks_k) = {a} and {b}: both must be "
            "the same; build both for one grid"
        )
    mask = first.to_bool() | second.to_bool()
    lists = from_bool(mask, block_q=first.block_q, block_k=first.block_k)
    valid = first.kv_valid if first.kv_valid is not None else second.kv_valid
    return replace(lists, kv_valid=valid)


def longest_first(lists: BlockLists, batch: int, heads: int) -> BlockLists:
    """Let a GPU begin with the longest lists, so that ragged ones end together.

    The order stays inside one head at a time where all lists are equally long: a sort is stable.
    """
    cnt: Int[Tensor, "b h nq"] = lists.cnt.expand(batch, heads, -1)
    return replace(lists, order=cnt.flatten().argsort(descending=True, stable=True).int())


def blocks_of(length: int, block: int) -> int:
    """Return how many blocks hold `length` rows."""
    return math.ceil(length / block)


def all_blocks(
    length_q: int,
    length_k: int,
    *,
    block_q: int = 128,
    block_k: int = 64,
    device: torch.device | None = None,
) -> BlockLists:
    """Keep every block: dense attention, in lists that share one row of memory."""
    nq, nk = blocks_of(length_q, block_q), blocks_of(length_k, block_k)
    idx = torch.arange(nk, dtype=torch.int32, device=device).expand(1, 1, nq, nk)
    cnt = torch.full((1, 1, nq), nk, dtype=torch.int32, device=device)
    return BlockLists(idx, cnt, nk, block_q, block_k)
