"""Pooling of token blocks: what the masks of block-sparse attention are estimated from.

A block B holds the tokens of one tile of the attention matrix; the last one may be short, and a
padded tile may hold fewer valid tokens than `block` (`valid`). Over its n valid tokens

    mean(B)       = 1/n sum_i x_i
    similarity(B) = 1/n^2 sum_ij cos(x_i, x_j) = |sum_i x_i / |x_i||^2 / n^2
    largest(B)    = max_i,c |x_ic|

A block of similarity near 1 is well described by its mean (Zhang et al. 2025, SpargeAttention,
arXiv:2502.18137); `largest` is the scale of a quantised block. Sums are taken in fp32, in fp64 for
fp64 input. A token of zeros has no direction and adds nothing to the similarity. A block without
valid tokens has mean, similarity and largest 0.

Differs from the authors' code: any number of tokens; nothing is divided by zero.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from skipstep.kernels.dispatch import backend_for, custom_op

__all__ = ["BlockStats", "block_mean", "block_mean_ref", "block_stats", "block_stats_ref"]

Valid = Int[Tensor, " n"]


class BlockStats(NamedTuple):
    """Hold what `block_stats` returns, all in fp32 (fp64 for fp64 input)."""

    mean: Float[Tensor, "b h n d"]
    similarity: Float[Tensor, "b h n"]
    largest: Float[Tensor, "b h n"]


def wide(x: Tensor) -> torch.dtype:
    """Return the type in which sums over `x` are taken."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def block_mean_ref(
    x: Float[Tensor, "b h s d"], block: int, valid: Valid | None = None
) -> Float[Tensor, "b h n d"]:
    """Return the definition of `block_mean` in plain torch."""
    if valid is None:
        full = x.shape[2] // block
        blocks = x[:, :, : full * block].reshape(*x.shape[:2], full, block, x.shape[3])
        means = [blocks.mean(3, dtype=wide(x))]
        if x.shape[2] % block:
            means.append(x[:, :, full * block :].mean(2, keepdim=True, dtype=wide(x)))
        return torch.cat(means, dim=2)
    tokens, present, counts = _blocks(x, block, valid)
    return tokens.to(wide(x)).where(present, 0).sum(3) / counts


def block_stats_ref(
    x: Float[Tensor, "b h s d"], block: int, valid: Valid | None = None
) -> BlockStats:
    """Return the definition of `block_stats` in plain torch."""
    tokens, present, counts = _blocks(x, block, valid)
    tokens = tokens.to(wide(x)).where(present, 0)
    lengths = tokens.norm(dim=-1, keepdim=True)
    directions = (tokens / lengths.where(lengths > 0, 1)).sum(3)  # [b, h, n, d]
    return BlockStats(
        mean=tokens.sum(3) / counts,
        similarity=directions.square().sum(-1) / counts[..., 0].square(),
        largest=tokens.abs().amax((3, 4)),
    )


def _shapes(
    x: Tensor, block: int, valid: Tensor | None, mean_only: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    b, h, s, d = x.shape
    n = -(-s // block)
    each = (b, h, 0 if mean_only else n)
    return (
        x.new_empty((b, h, n, d), dtype=wide(x)),
        x.new_empty(each, dtype=wide(x)),
        x.new_empty(each, dtype=wide(x)),
    )


@custom_op("block_stats", fake=_shapes)
def _block_stats(
    x: Tensor, block: int, valid: Tensor | None, mean_only: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, similarity and largest, the last two without blocks with `mean_only`."""
    if backend_for("block_stats", x, backend=backend) != "torch":
        from skipstep.kernels.block_pool_triton import block_stats_triton

        return block_stats_triton(x, block, valid, mean_only)
    if not mean_only:
        mean, similarity, largest = block_stats_ref(x, block, valid)
        return mean, similarity, largest
    none = x.new_empty((*x.shape[:2], 0), dtype=wide(x))
    return block_mean_ref(x, block, valid), none, none.clone()


def block_mean(
    x: Float[Tensor, "b h s d"],
    block: int,
    valid: Valid | None = None,
    *,
    backend: str | None = None,
) -> Float[Tensor, "b h n d"]:
    """Return the mean of every block of `block` tokens, in fp32 (fp64 for fp64 input).

    Args:
        valid: tokens of each block that count, its first ones; None means all.
        backend: "torch", "triton" or "interpret"; None chooses (`kernels.dispatch`).

    Raises:
        ValueError: if the block is empty, the backend cannot serve, or `valid` is not one number
            per block.

    >>> block_mean(torch.tensor([1.0, 3.0, 5.0]).reshape(1, 1, 3, 1), 2).flatten()
    tensor([2., 5.])
    """
    check_blocks("block_mean", x, block, valid)
    mean: Tensor = _block_stats(x, block, valid, True, backend or "auto")[0]
    return mean


def block_stats(
    x: Float[Tensor, "b h s d"],
    block: int,
    valid: Valid | None = None,
    *,
    backend: str | None = None,
) -> BlockStats:
    """Return mean, self-similarity and largest magnitude of every block in one pass over `x`.

    Args:
        valid: tokens of each block that count, its first ones; None means all.
        backend: "torch", "triton" or "interpret"; None chooses (`kernels.dispatch`).

    Raises:
        ValueError: if the block is empty, the backend cannot serve, or `valid` is not one number
            per block.

    >>> alike = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    >>> block_stats(alike[None, None], 2).similarity.flatten()
    tensor([1., 0.])
    """
    check_blocks("block_stats", x, block, valid)
    return BlockStats(*_block_stats(x, block, valid, False, backend or "auto"))


def check_blocks(name: str, x: Tensor, block: int, valid: Tensor | None) -> None:
    """Raise ValueError on a block or a list of valid tokens that does not fit `x`."""
    if block < 1 or not x.shape[2]:
        raise ValueError(
            f"{name} was given blocks of {block} in {x.shape[2]} tokens: both must be at least 1"
        )
    count = -(-x.shape[2] // block)
    if valid is not None and tuple(valid.shape) != (count,):
        raise ValueError(
            f"{name} was given `valid` of shape {tuple(valid.shape)} for {count} blocks of {block} "
            f"in {x.shape[2]} tokens: it holds one number per block"
        )


def _blocks(x: Tensor, block: int, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens [b, h, n, block, d], which of them count, and how many do (at least 1)."""
    count = -(-x.shape[2] // block)
    padded = torch.nn.functional.pad(x, (0, 0, 0, count * block - x.shape[2]))
    place = torch.arange(count * block, device=x.device)
    inside = place < x.shape[2]
    if valid is not None:
        inside &= place % block < valid.repeat_interleave(block)
    present = inside.reshape(count, block)
    counts = present.sum(1).clamp_min(1).to(wide(x))
    tokens = padded.reshape(*x.shape[:2], count, block, x.shape[3])
    return tokens, present[..., None], counts[:, None]
