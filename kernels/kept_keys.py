"""Which keys the rows of a list attend to, where blocks may be cut off by padding.

`kv_lens` says how many leading keys of a batch entry count, `BlockLists.kv_valid` how many leading
rows of a key block do; the last block is as long as the keys are.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from skipstep.kernels.block_layout import BlockLists

__all__ = ["kept_keys", "keys_inside", "valid_rows"]


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
