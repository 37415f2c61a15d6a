"""Tiles: they divide the blocks, fit in shared memory, and a measured file wins."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipstep.kernels.tuning import (
    SHARED_LIMIT,
    Tiles,
    key_of,
    pick,
    shared_bytes,
    write_measured,
)

OP = "block_sparse_attention"


@given(
    d=st.sampled_from([16, 64, 80, 128, 256]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int8]),
    sm=st.sampled_from([*SHARED_LIMIT, 87]),
    block_q=st.sampled_from([16, 48, 64, 100, 128, 384, 512]),
    block_k=st.sampled_from([16, 32, 64, 128]),
)
def test_tiles_cut_blocks_and_fit_in_shared_memory(
    d: int, dtype: torch.dtype, sm: int, block_q: int, block_k: int
) -> None:
    tiles = pick(OP, d=d, dtype=dtype, sm=sm, block_q=block_q, block_k=block_k)
    for tile, block in ((tiles.block_m, block_q), (tiles.block_n, block_k)):
        assert tile >= 16 and tile & (tile - 1) == 0
        assert block % tile == 0 or block % 16
    assert tiles.stages >= 1
    assert shared_bytes(tiles, d, max(dtype.itemsize, 2)) <= SHARED_LIMIT.get(sm, 99 << 10)


def test_a_measured_file_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tuning.json"
    monkeypatch.setenv("SKIPSTEP_TUNING", str(path))
    write_measured(path, {key_of(OP, 128, torch.bfloat16): Tiles(64, 32, 2, 4)})
    numbers = {"sm": 90, "block_q": 128, "block_k": 64}
    assert pick(OP, d=128, dtype=torch.bfloat16, **numbers) == Tiles(64, 32, 2, 4)
    assert pick(OP, d=64, dtype=torch.bfloat16, **numbers) != Tiles(64, 32, 2, 4)


def test_a_broken_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "broken.json"
    path.write_text('{"x": {"block_m": 1}}')
    monkeypatch.setenv("SKIPSTEP_TUNING", str(path))
    with pytest.raises(ValueError, match=r"broken.json is not a file of measured tiles"):
        pick(OP, d=64, dtype=torch.float16, sm=80, block_q=64, block_k=64)
