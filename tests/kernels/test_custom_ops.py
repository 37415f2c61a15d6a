"""Ops as torch sees them: registered soundly, whole in compiled graphs, every output written."""

from typing import Any

import pytest
import torch
from torch import Tensor

from skipstep.kernels import (
    block_pool,
    block_scores,
    delta,
    glu,
    kmeans,
    norm_modulate,
    permute,
    qknorm_rope,
)

X = torch.randn(2, 2, 40, 16, generator=torch.Generator().manual_seed(0))
Y = torch.randn(2, 2, 30, 16, generator=torch.Generator().manual_seed(1))
VALID = torch.tensor([16, 9, 0])
ORDER = permute.tile_order(1, 5, 8, (1, 2, 3), pad=True)
FLAT = X.flatten(0, 1)
ROWS, MODULATION = X[:, 0], Y[:, 1, :1]
ANGLES = X[:, :, 0, :8]

CASES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "block_stats": (block_pool._block_stats, (X, 16, VALID, False)),
    "block_mean": (block_pool._block_stats, (X, 16, None, True)),
    "antidiagonal": (block_scores._pooled_softmax, (X, Y, 4, 4, 2, 0.3, False)),
    "sampled": (block_scores._pooled_softmax, (X, Y[:, :1], 1, 4, 8, 0.3, True)),
    "gather_tokens": (permute._gather, (X, ORDER)),
    "kmeans": (kmeans._kmeans, (FLAT, FLAT[:, :3], 2)),
    "shift_groups": (delta._shift_groups, (X, X[:, :, :5], 8)),
    "norm_modulate": (
        norm_modulate._norm_modulate,
        (ROWS, MODULATION, MODULATION, None, 1e-6, False),
    ),
    "gated": (norm_modulate._gated, (ROWS, ROWS, *[MODULATION] * 3, MODULATION[0, 0], 1e-6, True)),
    "qk_norm_rope": (
        qknorm_rope._qk_norm_rope,
        (X, X[:, :, :30], None, None, ANGLES.cos(), ANGLES.sin(), 1e-6, True, False),
    ),
    "glu": (glu._glu, (X, "gelu")),
}


def outputs(result: Any) -> list[Tensor]:
    """Return an op's tensors as a list."""
    return [result] if isinstance(result, Tensor) else list(result)


@pytest.mark.parametrize("name", CASES)
def test_torch_accepts_the_op(name: str) -> None:
    op, inputs = CASES[name]
    torch.library.opcheck(op, (*inputs, "torch"))


@pytest.mark.parametrize("name", CASES)
def test_a_compiled_graph_holds_the_op_whole(name: str) -> None:
    op, inputs = CASES[name]
    torch.compiler.reset()

    def twice(first: Tensor) -> list[Tensor]:
        return [2 * out for out in outputs(op(2 * first, *inputs[1:], "torch"))]

    compiled = torch.compile(twice, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs[0]), twice(inputs[0]))


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_writes_every_output(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, inputs = CASES[name]
    expected = outputs(op(*inputs, "torch"))
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        made = empty(*args, **kwargs)
        return made.fill_(torch.nan if made.is_floating_point() else -(2**30))

    monkeypatch.setattr(torch, "empty", poisoned)
    found = outputs(op(*inputs, "interpret"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
