"""Scores of the tiles of an attention matrix, estimated from a few of its entries.

A = softmax over a thinned attention matrix; the score of a tile is what its entries sum up to
(antidiagonal) or the largest of them (sampled), and each row of tiles sums to 1.

Antidiagonal (Xu et al. 2025, XAttention, arXiv:2503.16428): with stride S, groups of S tokens are
compared along the antidiagonal of their S x S entries, which meets every vertical and every slash
line of the matrix; it takes 1/S of the work of q k^T:

    A_gh = softmax_h( scale / S * sum_{i<S} q_{gS+S-1-i} . k_{hS+i} ),   score = sum over the tile

Sampled (Video-BLADE, Gu et al. 2025, its adaptive block-sparse attention): `count` tokens of each
block, evenly spaced, are compared exactly:

    A = softmax( scale * q' k'^T ),   score = max over the tile, divided by its sum over the row

Rows of a short last block are averaged over the rows that exist; tokens beyond the end are zeros.

Differs from the authors' code: no padding to chunks, any number of tokens; samples are evenly
spaced instead of random, so that equal runs have equal masks.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.kernels.dispatch import backend_for, custom_op, upcast_dot

__all__ = ["antidiagonal_scores", "pooled_softmax_ref", "sampled_scores"]

CHUNK = 2**24
"""Entries of the thinned matrix that the plain path holds at a time."""


def pooled_softmax_ref(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b g t d"],
    stride: int,
    cell_q: int,
    cell_k: int,
    scale: float,
    largest: bool,
) -> Float[Tensor, "b h n m"]:
    """Return the tiles' sums (or largest entries) of the thinned softmax, in fp32 (fp64 for fp64).

    `cell_q` and `cell_k` are the rows and columns of the thinned matrix that make a tile.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    folded_q = _fold(q.to(wide), stride).flip(-2).flatten(-2)
    folded_k = (
        _fold(k.to(wide), stride).flatten(-2).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    )
    per_row = q.shape[0] * q.shape[1] * folded_k.shape[2]
    rows = max(1, CHUNK // (per_row * cell_q)) * cell_q
    found = []
    for part in torch.split(folded_q, rows, dim=2):
        a = torch.softmax(part @ folded_k.mT * (scale / stride), dim=-1)
        padded = torch.nn.functional.pad(a, (0, -a.shape[-1] % cell_k))
        cells = padded.reshape(*padded.shape[:3], -1, cell_k)
        columns = cells.amax(-1) if largest else cells.sum(-1)  # [b, h, rows, m]
        full = part.shape[2] // cell_q * cell_q
        whole, short = columns[:, :, :full], columns[:, :, full:]
        whole = whole.reshape(*whole.shape[:2], -1, cell_q, whole.shape[3])
        found.append(whole.amax(3) if largest else whole.mean(3))
        if short.shape[2]:
            found.append(short.amax(2, keepdim=True) if largest else short.mean(2, keepdim=True))
    return torch.cat(found, dim=2)


def _shape(
    q: Tensor,
    k: Tensor,
    stride: int,
    cell_q: int,
    cell_k: int,
    scale: float,
    largest: bool,
    backend: str,
) -> Tensor:
    n, m = -(-q.shape[2] // (stride * cell_q)), -(-k.shape[2] // (stride * cell_k))
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty((q.shape[0], q.shape[1], n, m), dtype=wide)


@custom_op("pooled_softmax", fake=_shape)
def _pooled_softmax(
    q: Tensor,
    k: Tensor,
    stride: int,
    cell_q: int,
    cell_k: int,
    scale: float,
    largest: bool,
    backend: str,
) -> Tensor:
    """Return the tiles' scores."""
    unserved = None
    if cell_q & (cell_q - 1) or cell_k & (cell_k - 1):
        unserved = f"tiles of {cell_q} x {cell_k} thinned entries are no powers of two"
    chosen = backend_for("pooled_softmax", q, k, backend=backend, unserved=unserved)
    if chosen == "torch":
        return pooled_softmax_ref(q, k, stride, cell_q, cell_k, scale, largest)
    from skipstep.kernels.block_scores_triton import pooled_softmax_triton

    upcast = upcast_dot(chosen, q.dtype)
    return pooled_softmax_triton(q, k, stride, cell_q, cell_k, scale, largest, upcast)


def antidiagonal_scores(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b g t d"],
    *,
    stride: int = 16,
    block_q: int = 128,
    block_k: int = 64,
    scale: float | None = None,
    backend: str | None = None,
) -> Float[Tensor, "b h n m"]:
    """Return the share of attention in every tile of `block_q` x `block_k`, each row summing to 1.

    Args:
        stride: S; the work is 1/S of the attention matrix's.
        scale: of the logits; 1/sqrt(d) if None.
        backend: "torch", "triton" or "interpret"; None chooses (`kernels.dispatch`).

    Raises:
        ValueError: if the blocks are no multiples of the stride, or the heads do not fit.

    >>> x = torch.randn(1, 2, 100, 8)
    >>> antidiagonal_scores(x, x, stride=4, block_q=32, block_k=16).shape
    torch.Size([1, 2, 4, 7])
    """
    _check("antidiagonal_scores", q, k)
    if stride < 1 or block_q % stride or block_k % stride:
        raise ValueError(
            f"antidiagonal_scores was given stride {stride} with blocks of {block_q} and {block_k}:"
            " both must be multiples of the stride"
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    cells = block_q // stride, block_k // stride
    scores: Tensor = _pooled_softmax(q, k, stride, *cells, scale, False, backend or "auto")
    return scores


def sampled_scores(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b g t d"],
    *,
    count: int = 16,
    block_q: int = 128,
    block_k: int = 64,
    scale: float | None = None,
    backend: str | None = None,
) -> Float[Tensor, "b h n m"]:
    """Return scores of every tile from `count` sampled tokens a block, each row summing to 1.

    A short last block is sampled `count` times too, so its tokens may repeat.

    Args:
        count: sampled tokens per block.
        scale: of the logits; 1/sqrt(d) if None.
        backend: "torch", "triton" or "interpret"; None chooses (`kernels.dispatch`).

    Raises:
        ValueError: if `count` is not within 1 and the smaller block, or the heads do not fit.

    >>> x = torch.randn(1, 2, 100, 8)
    >>> sampled_scores(x, x, count=4, block_q=32, block_k=16).sum(-1).allclose(torch.ones(1, 2, 4))
    True
    """
    _check("sampled_scores", q, k)
    if not 1 <= count <= min(block_q, block_k):
        raise ValueError(
            f"sampled_scores was given count {count} with blocks of {block_q} and {block_k}: "
            f"allowed are 1 to {min(block_q, block_k)}"
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    samples_q = q.index_select(2, sample_places(q.shape[2], block_q, count, q.device))
    samples_k = k.index_select(2, sample_places(k.shape[2], block_k, count, k.device))
    scores: Tensor = _pooled_softmax(
        samples_q, samples_k, 1, count, count, scale, True, backend or "auto"
    )
    return scores / scores.sum(-1, keepdim=True)


def sample_places(tokens: int, block: int, count: int, device: torch.device) -> Tensor:
    """Return the places of `count` evenly spaced tokens of every block, block by block.

    >>> sample_places(6, 4, 2, torch.device("cpu"))
    tensor([1, 3, 4, 5])
    """
    starts = torch.arange(0, tokens, block, device=device)
    lengths = (tokens - starts).clamp_max(block)
    steps = 2 * torch.arange(count, device=device) + 1
    places = starts[:, None] + lengths[:, None] * steps // (2 * count)
    return places.flatten()


def _fold(x: Tensor, stride: int) -> Tensor:
    """Return [b, h, s/stride, stride, d], with zeros behind the last token."""
    padded = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % stride))
    return padded.reshape(*x.shape[:2], -1, stride, x.shape[3])


def _check(name: str, q: Tensor, k: Tensor) -> None:
    if q.shape[1] % k.shape[1] or not q.shape[2] or not k.shape[2]:
        raise ValueError(
            f"{name} was given q {tuple(q.shape)} and k {tuple(k.shape)}: both hold tokens, and "
            "the heads of q are a multiple of those of k"
        )
