"""Orders of the tokens of a picture or video, and moving tokens into them and back.

Attention of tokens that are near in space is near the diagonal only if the order of the tokens
follows space. An order is a list of places: token `order[i]` of the raster (frame, row, column)
comes i-th; -1 is padding.

- tile: the grid in tiles of (frames, height, width) tokens, each in raster order (Zhang et al.
  2025, Sliding Tile Attention and VSA). Border tiles are short; `pad` fills them up to whole tiles.
- gilbert: one path through the grid that hardly ever jumps, a Hilbert curve for any size
  (J. Cerveny's generalised curve; Zhang et al. 2025, Jenga, arXiv:2505.16864): every stretch of it
  is compact.
- frame minor: all frames of one place together (Xi et al. 2025, Sparse VideoGen, arXiv:2502.01776).

The curve splits a box along its longest side until it is a line; a part is entered where the last
one was left, so two consecutive tokens are neighbours. With odd sides a step may be diagonal.

Differs from the authors' code: orders are plain tensors, remembered for the last grids in a
cache of this module's and not on a class; nothing needs to divide.
"""

import functools
from collections.abc import Iterator

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from skipstep.kernels.dispatch import backend_for, custom_op

__all__ = ["frame_minor_order", "gather_tokens", "gather_tokens_ref", "gilbert_order"]
__all__ += ["inverse_order", "scatter_tokens", "scatter_tokens_ref", "tile_order", "tile_sizes"]

Vector = tuple[int, int, int]
MOVED = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32)


def gather_tokens_ref(
    x: Shaped[Tensor, "b h s d"], order: Int[Tensor, " n"] | Int[Tensor, "b h n"]
) -> Shaped[Tensor, "b h n d"]:
    """Return the definition of `gather_tokens` in plain torch."""
    places = order.clamp_min(0).long()
    if order.ndim == 1:
        taken = x.index_select(2, places)
    else:
        taken = x.gather(2, places[..., None].expand(-1, -1, -1, x.shape[3]))
    return taken.where(order[..., None] >= 0, 0)


def scatter_tokens_ref(
    y: Shaped[Tensor, "b h n d"], order: Int[Tensor, " n"] | Int[Tensor, "b h n"], length: int
) -> Shaped[Tensor, "b h s d"]:
    """Return the definition of `scatter_tokens` in plain torch."""
    out = y.new_zeros(*y.shape[:2], length + 1, y.shape[3])
    places = order.long().where(order >= 0, length)
    out.scatter_(2, places.expand(y.shape[:3])[..., None].expand_as(y), y)
    return out[:, :, :length]


def _shape(x: Tensor, order: Tensor, backend: str) -> Tensor:
    return x.new_empty(*x.shape[:2], order.shape[-1], x.shape[3])


@custom_op("gather_tokens", fake=_shape)
def _gather(x: Tensor, order: Tensor, backend: str) -> Tensor:
    """Return the tokens in this order, contiguous."""
    if backend_for("gather_tokens", x, backend=backend, dtypes=MOVED) == "torch":
        return gather_tokens_ref(x, order)
    from skipstep.kernels.permute_triton import gather_triton

    return gather_triton(x, order)


def gather_tokens(
    x: Shaped[Tensor, "b h s d"],
    order: Int[Tensor, " n"] | Int[Tensor, "b h n"],
    *,
    backend: str | None = None,
) -> Shaped[Tensor, "b h n d"]:
    """Return the tokens of `x` in this order, zeros where the order is -1.

    Where a gradient is wanted, plain torch runs.

    Args:
        order: places, one list for all or one per sample and head.
        backend: "torch", "triton" or "interpret"; None chooses (`kernels.dispatch`).

    Raises:
        ValueError: if the order is for other samples or heads, or the backend cannot serve.

    >>> x = torch.tensor([10, 20, 30]).reshape(1, 1, 3, 1)
    >>> gather_tokens(x, torch.tensor([2, 0, -1, 1])).flatten()
    tensor([30, 10,  0, 20])
    """
    if order.ndim == 3 and order.shape[:2] != x.shape[:2]:
        raise ValueError(
            f"gather_tokens was given an order {tuple(order.shape)} for tokens {tuple(x.shape)}: "
            "it is one list for all, or one per sample and head"
        )
    if x.requires_grad and torch.is_grad_enabled():
        return gather_tokens_ref(x, order)
    gathered: Tensor = _gather(x, order, backend or "auto")
    return gathered


def scatter_tokens(
    y: Shaped[Tensor, "b h n d"],
    order: Int[Tensor, " n"] | Int[Tensor, "b h n"],
    length: int,
    *,
    backend: str | None = None,
) -> Shaped[Tensor, "b h s d"]:
    """Undo `gather_tokens`: put token i at place `order[i]` of `length`, and drop those at -1.

    A place that the order does not name is zero. It gathers by `inverse_order`; who undoes an order
    more than once keeps that and calls `gather_tokens`.

    Args:
        length: places of the result.
        backend: "torch", "triton" or "interpret"; None chooses (`kernels.dispatch`).

    Raises:
        ValueError: if the order is not for these tokens, or the backend cannot serve.

    >>> y = torch.tensor([30, 10, 0, 20]).reshape(1, 1, 4, 1)
    >>> scatter_tokens(y, torch.tensor([2, 0, -1, 1]), 3).flatten()
    tensor([10, 20, 30])
    """
    if order.shape[-1] != y.shape[2]:
        raise ValueError(
            f"scatter_tokens was given {y.shape[2]} tokens and an order of {order.shape[-1]}: it "
            "is the order in which they were gathered"
        )
    return gather_tokens(y, inverse_order(order, length), backend=backend)


def inverse_order(order: Int[Tensor, "*b n"], length: int) -> Int[Tensor, "*b s"]:
    """Return where each of `length` places went, so that gathering with it undoes the order.

    >>> inverse_order(torch.tensor([2, 0, -1, 1]), 3)
    tensor([1, 3, 0])
    """
    inverse = order.new_full((*order.shape[:-1], length + 1), -1)
    places = order.long().where(order >= 0, length)
    came_from = torch.arange(order.shape[-1], device=order.device, dtype=order.dtype)
    return inverse.scatter_(-1, places, came_from.expand_as(order))[..., :length]


def tile_order(
    frames: int,
    height: int,
    width: int,
    tile: tuple[int, int, int],
    *,
    pad: bool = False,
    device: torch.device | str = "cpu",
) -> Int[Tensor, " n"]:
    """Return the tokens of a grid tile by tile, tiles and tokens in raster order.

    Args:
        tile: frames, height and width of a tile, in tokens.
        pad: fill every tile up with -1, so that all have the same number of places.

    >>> tile_order(1, 2, 4, (1, 2, 2))
    tensor([0, 1, 4, 5, 2, 3, 6, 7])
    """
    _check_grid("tile_order", frames, height, width, *tile)
    return _tile_order(frames, height, width, tile, pad, torch.device(device))


def tile_sizes(
    frames: int,
    height: int,
    width: int,
    tile: tuple[int, int, int],
    *,
    device: torch.device | str = "cpu",
) -> Int[Tensor, " t"]:
    """Return how many tokens each tile of `tile_order` holds.

    >>> tile_sizes(1, 2, 3, (1, 2, 2))
    tensor([4, 2])
    """
    _check_grid("tile_sizes", frames, height, width, *tile)
    order = _tile_order(frames, height, width, tile, True, torch.device(device))
    return (order.reshape(-1, tile[0] * tile[1] * tile[2]) >= 0).sum(1)


def gilbert_order(
    frames: int, height: int, width: int, *, device: torch.device | str = "cpu"
) -> Int[Tensor, " n"]:
    """Return the tokens of a grid along a space-filling curve.

    >>> gilbert_order(1, 2, 2)
    tensor([0, 1, 3, 2])
    """
    _check_grid("gilbert_order", frames, height, width)
    return _gilbert_order(frames, height, width, torch.device(device))


def frame_minor_order(
    frames: int, height: int, width: int, *, device: torch.device | str = "cpu"
) -> Int[Tensor, " n"]:
    """Return the tokens of a grid with all frames of one place together.

    >>> frame_minor_order(2, 1, 3)
    tensor([0, 3, 1, 4, 2, 5])
    """
    _check_grid("frame_minor_order", frames, height, width)
    raster = torch.arange(frames * height * width, device=device)
    return raster.reshape(frames, height * width).T.flatten()


@functools.lru_cache(maxsize=32)
def _tile_order(
    frames: int, height: int, width: int, tile: Vector, pad: bool, device: torch.device
) -> Tensor:
    raster = torch.arange(frames * height * width).reshape(frames, height, width)
    missing = [-size % t for size, t in zip(raster.shape, tile, strict=True)]
    padded = torch.nn.functional.pad(
        raster, (0, missing[2], 0, missing[1], 0, missing[0]), value=-1
    )
    t, h, w = (size // part for size, part in zip(padded.shape, tile, strict=True))
    split = padded.reshape(t, tile[0], h, tile[1], w, tile[2])
    order = split.permute(0, 2, 4, 1, 3, 5).flatten()
    return (order if pad else order[order >= 0]).to(device)


@functools.lru_cache(maxsize=32)
def _gilbert_order(frames: int, height: int, width: int, device: torch.device) -> Tensor:
    sides: list[Vector] = [(frames, 0, 0), (0, height, 0), (0, 0, width)]
    a, b, c = sorted(sides, key=sum, reverse=True)
    path = torch.tensor(list(_curve((0, 0, 0), a, b, c)))
    return (path @ torch.tensor([height * width, width, 1])).to(device)


def _curve(p: Vector, a: Vector, b: Vector, c: Vector) -> Iterator[Vector]:
    """Walk through the box at `p` with edges a, b, c: from `p` to the last cell along `a`.

    An edge is a vector along one axis; its length counts cells. A box is cut in two along a long
    `a`, in three around one middle where `b` is long, else in five around two.
    """
    if not (_length(a) and _length(b) and _length(c)):
        return
    if _length(b) < _length(c):
        b, c = c, b
    if _length(b) == 1 or (_length(a) == 1 and _length(c) == 1):
        longest = max(a, b, key=_length)
        for step in range(_length(longest)):
            yield _add(p, _times(_unit(longest), step))
        return
    a1, b1, c1 = _half(a), _half(b), _half(c)
    a2, b2, c2 = _less(a, a1), _less(b, b1), _less(c, c1)
    end_a, end_b, end_c = _less(a, _unit(a)), _less(b1, _unit(b)), _less(c, _unit(c))
    if 2 * _length(a) > 3 * _length(b):
        yield from _curve(p, a1, b, c)
        yield from _curve(_add(p, a1), a2, b, c)
    elif 3 * _length(b) > 4 * _length(c):
        yield from _curve(p, b1, c, a1)
        yield from _curve(_add(p, b1), a, b2, c)
        yield from _curve(_add(p, end_a, end_b), _times(b1, -1), c, _times(a2, -1))
    else:
        yield from _curve(p, b1, c1, a1)
        yield from _curve(_add(p, b1), c, a1, b2)
        yield from _curve(_add(p, end_b, end_c), a, _times(b1, -1), _times(c2, -1))
        yield from _curve(_add(p, end_a, b1, end_c), _times(c, -1), _times(a2, -1), b2)
        yield from _curve(_add(p, end_a, end_b), _times(b1, -1), c1, _times(a2, -1))


def _length(edge: Vector) -> int:
    return abs(sum(edge))


def _unit(edge: Vector) -> Vector:
    return _times(edge, 1, _length(edge))


def _half(edge: Vector) -> Vector:
    """Return the first half of an edge, of even length where it can be: even parts join without a
    diagonal step.
    """
    half = _length(edge) // 2
    if half % 2 and _length(edge) > 2:
        half += 1
    return _times(edge, half, _length(edge))


def _times(edge: Vector, factor: int, divisor: int = 1) -> Vector:
    return (
        edge[0] * factor // divisor,
        edge[1] * factor // divisor,
        edge[2] * factor // divisor,
    )


def _add(*vectors: Vector) -> Vector:
    f, h, w = (sum(parts) for parts in zip(*vectors, strict=True))
    return f, h, w


def _less(edge: Vector, part: Vector) -> Vector:
    return _add(edge, _times(part, -1))


def _check_grid(name: str, *sizes: int) -> None:
    if min(sizes) < 1:
        raise ValueError(f"{name} was given sizes {sizes}: all are at least 1")
