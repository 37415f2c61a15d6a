"""Tile sizes, warps and pipeline stages of Triton kernels: a table, and what a machine measured.

`triton.autotune` needs a driver, stalls the first call for minutes and measures again in every
process, so nothing here measures while a user waits. `pick` answers from

1. the file that `python -m benchmarks.gpu tune` wrote on this kind of GPU with this triton (in
   `cache_folder()`, or where SKIPSTEP_TUNING points), else
2. the table below: what published kernels use on each architecture, not measured by us,

and then shrinks the pipeline until it fits in the shared memory of a block.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

__all__ = [
    "LOG2_E",
    "Tiles",
    "architecture",
    "cache_folder",
    "key_of",
    "measured_path",
    "pick",
    "pick_for",
    "read_measured",
    "shared_bytes",
    "unserved",
    "write_measured",
]

VARIABLE = "SKIPSTEP_TUNING"
LOG2_E = 1.4426950408889634
LARGEST_D = 256

# Bytes of shared memory that one block may use (CUDA C++ programming guide, compute capabilities).
SHARED_LIMIT = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10}
SHARED_LIMIT |= {100: 227 << 10, 103: 227 << 10, 120: 99 << 10}


@dataclass(frozen=True)
class Tiles:
    """How a kernel cuts its work.

    Args:
        block_m: query rows of one program.
        block_n: key rows of one step of its loop.
        warps: warps of a program.
        stages: tiles of keys and values in flight.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int


# (largest head dim, bytes of a number) -> tiles, for shared memory of sm_80 and of sm_90.
AMPERE = {
    (64, 2): Tiles(128, 64, 4, 3),
    (128, 2): Tiles(128, 64, 8, 2),
    (256, 2): Tiles(64, 32, 4, 2),
    (64, 4): Tiles(64, 32, 4, 2),
    (128, 4): Tiles(64, 32, 4, 2),
    (256, 4): Tiles(32, 16, 4, 1),
}
# A gradient holds tiles of q, k, v and do, and twice the sums.
BACKWARD = {
    (64, 2): Tiles(64, 64, 4, 2),
    (128, 2): Tiles(64, 64, 8, 1),
    (256, 2): Tiles(32, 32, 8, 1),
    (64, 4): Tiles(32, 32, 4, 1),
    (128, 4): Tiles(32, 32, 4, 1),
    (256, 4): Tiles(16, 16, 4, 1),
}
HOPPER = AMPERE | {
    (64, 2): Tiles(128, 128, 4, 3),
    (128, 2): Tiles(128, 64, 8, 3),
    (256, 2): Tiles(128, 64, 8, 2),
}


def architecture(device: torch.device) -> int:
    """Return the compute capability of a device as 10 * major + minor; 90 where there is no GPU."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def shared_bytes(tiles: Tiles, d: int, size: int) -> int:
    """Estimate the shared memory of an attention kernel: a tile of Q, `stages` of K and V."""
    return (tiles.block_m + 2 * tiles.block_n * tiles.stages) * d * size


def key_of(op: str, d: int, dtype: torch.dtype) -> str:
    """Name an entry of the measured file.

    >>> key_of("block_sparse_attention", 128, torch.bfloat16)
    'block_sparse_attention/d128/bfloat16'
    """
    return f"{op}/d{d}/{str(dtype).removeprefix('torch.')}"


def cache_folder() -> Path:
    """Return the folder of measured files, which may not exist yet."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "skipstep"


@cache
def triton_version() -> str:
    """Return the version of triton that is installed."""
    return version("triton")


def measured_path(sm: int) -> Path:
    """Return the file of one architecture and the triton that is installed."""
    named = os.environ.get(VARIABLE)
    name = f"tuning-sm{sm}-triton{triton_version()}.json"
    return Path(named) if named else cache_folder() / name


def write_measured(path: Path, tiles: Mapping[str, Tiles]) -> None:
    """Write measured tiles by their keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {key: asdict(value) for key, value in sorted(tiles.items())}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@cache
def read_measured(path: Path) -> Mapping[str, Tiles]:
    """Read measured tiles once per process; an absent file is empty.

    Raises ValueError, naming the file, where it is not what `write_measured` writes.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {key: Tiles(**value) for key, value in content.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a file of measured tiles ({error}): delete it, or write it again with "
            "python -m benchmarks.gpu tune"
        ) from error


def pick(op: str, *, d: int, dtype: torch.dtype, sm: int, block_q: int, block_k: int) -> Tiles:
    """Choose the tiles of an attention kernel for blocks of `block_q` by `block_k` rows."""
    measured = read_measured(measured_path(sm)).get(key_of(op, d, dtype))
    size = max(dtype.itemsize, 2)
    table = HOPPER if SHARED_LIMIT.get(sm, 0) >= SHARED_LIMIT[90] else AMPERE
    if op.endswith("_backward"):
        table = BACKWARD
    tiles = measured or table[next(key for key in table if d <= key[0] and size == key[1])]
    tiles = replace(
        tiles, block_m=fitting(tiles.block_m, block_q), block_n=fitting(tiles.block_n, block_k)
    )
    limit = SHARED_LIMIT.get(sm, 99 << 10)
    while shared_bytes(tiles, d, size) > limit and tiles.stages > 1:
        tiles = replace(tiles, stages=tiles.stages - 1)
    return tiles


def pick_for(op: str, q: Tensor, block_q: int, block_k: int) -> Tiles:
    """Choose the tiles for queries on their device."""
    sm = architecture(q.device)
    return pick(op, d=q.shape[-1], dtype=q.dtype, sm=sm, block_q=block_q, block_k=block_k)


def unserved(q: Tensor) -> str | None:
    """Say why an attention kernel cannot serve queries of this shape, if it cannot."""
    if q.shape[-1] > LARGEST_D:
        return f"the head dim is {q.shape[-1]}, the kernel takes at most {LARGEST_D}"
    return None


def fitting(tile: int, block: int) -> int:
    """Return the largest power of two up to `tile` that divides `block`, at least 16.

    A block that 16 does not divide gets the power of two that holds it, up to `tile`: its last
    rows are masked.
    """
    divisor = block & -block
    if divisor >= 16:
        return min(tile, divisor)
    return min(tile, max(16, 1 << (block - 1).bit_length()))
