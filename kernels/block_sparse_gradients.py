"""Gradients of block-sparse attention (`block_sparse_attention`), for training with sparsity on.

p = exp(s - lse),  delta = rowsum(do * o) - dlse,  ds = p * (do v^T - delta) * scale
dq = ds k,  dk = ds^T q,  dv = p^T do     over the kept blocks alone
"""

import torch
from torch import Tensor

from skipstep.kernels.block_layout import BlockLists, from_bool
from skipstep.kernels.block_sparse_gather import KeptBlocks, gathered_gradients
from skipstep.kernels.dispatch import backend_for, custom_op, dot_precision, or_torch, upcast_dot
from skipstep.kernels.kept_keys import valid_rows
from skipstep.kernels.tuning import pick_for, unserved

__all__ = ["block_sparse_gradients"]


def _gradient_shapes(
    do: Tensor, delta: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: object
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


@custom_op("block_sparse_attention_backward", fake=_gradient_shapes)
def block_sparse_gradients(
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
        held = valid_rows(batch, k.shape[2], blocks_k, block_k, kv_valid, kv_lens)
        rows = idx.cpu().expand(batch, heads, -1, -1), cnt.cpu().expand(batch, heads, -1)
        kept = KeptBlocks(*rows, held, block_q, block_k)
        return gathered_gradients(do, delta, q, k, v, lse, kept, scale)

    def kernel() -> tuple[Tensor, Tensor, Tensor]:
        from skipstep.kernels.block_sparse_gradients_triton import launch_gradients

        columns = from_bool(BlockLists(idx, cnt, blocks_k).to_bool().transpose(2, 3).contiguous())
        by_row, by_column = (
            (x.contiguous().expand(batch, heads, -1, -1), count.expand(batch, heads, -1))
            for x, count in ((idx, cnt), (columns.idx, columns.cnt))
        )
        return launch_gradients(
            *(do, delta, q, k, v, lse, by_row, by_column, kv_valid, kv_lens),
            block_q=block_q,
            block_k=block_k,
            scale=scale,
            tiles=pick_for(name, q, block_q, block_k),
            upcast_dot=upcast_dot(chosen, q.dtype),
            precision=dot_precision(),
        )

    found = plain() if chosen == "torch" else or_torch(name, q.device, kernel, plain)
    dq, dk, dv = (torch.empty_like(x).copy_(dx) for x, dx in zip((q, k, v), found, strict=True))
    return dq, dk, dv
