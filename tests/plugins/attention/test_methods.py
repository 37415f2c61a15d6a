"""Every method of sparse attention: exact when it keeps all, text kept, samples alone.

Queries and keys here are random with a common part, so that attention is uneven.
"""

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skipstep.plugins.attention.block_sparse import METHODS, BlockSparse
from skipstep.plugins.attention.layout import Layout
from skipstep.plugins.attention.methods.base import SparseAttention
from skipstep.plugins.attention.sparse_call import Outcome, attend_sparsely

PICTURE = Layout((1, 10, 11))
LAYOUTS = {
    "picture": PICTURE,
    "text before": Layout((1, 9, 11), text=7, text_first=True),
    "video, text after": Layout((5, 6, 7), text=6),
}
SMALL: dict[str, Any] = {"block_q": 16, "block_k": 8, "force": True, "dense_steps": 0}
OF_THEIR_OWN: dict[str, dict[str, Any]] = {
    "asa": {"samples": 4, "max_keep": 1.0},
    "draft": {"tile": (1, 2, 4)},
    "nabla": {"tile": (1, 2, 4), "window": (1, 1, 1)},
    "sta": {"tile": (1, 2, 4)},
    "svg2": {"q_clusters": 8, "k_clusters": 16},
    "vsa": {"tile": (2, 2, 2), "block_q": 8},
}


def method(name: str, **options: Any) -> SparseAttention:
    """Build a method for small blocks."""
    return METHODS[name](**{**SMALL, **OF_THEIR_OWN.get(name, {}), **options})


@functools.cache
def tokens(n: int, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values [b, 3, n, 16]."""
    generator = torch.Generator().manual_seed(seed)
    common, a, b, v = torch.randn(4, batch, 3, n, 16, generator=generator).unbind()
    return common + 0.5 * a, common + 0.5 * b, v


def attend(found: SparseAttention, layout: Layout, calls: int = 2, batch: int = 2) -> Outcome:
    """Call as often as a method needs that looks at one step and is sparse at the next."""
    memory: dict[str, Any] = {}
    q, k, v = tokens(layout.tokens, batch)
    for step in range(calls):
        outcome = attend_sparsely(found, q, k, v, layout, step=step, memory=memory)
    return outcome


def cases() -> list[Any]:
    """List every method with every layout that it serves."""
    return [
        pytest.param(name, layout, id=f"{name}-{title}")
        for name, cls in METHODS.items()
        for title, layout in LAYOUTS.items()
        if not (cls.needs_frames and layout.grid[0] == 1)
    ]


@pytest.mark.parametrize(("name", "layout"), cases())
def test_keeping_everything_is_dense_attention(name: str, layout: Layout) -> None:
    q, k, v = tokens(layout.tokens)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    outcome = attend(method(name, keep=1.0), layout)
    assert outcome.output is not None
    assert float(outcome.density) == 1
    torch.testing.assert_close(outcome.output, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("name", "layout"), cases())
def test_text_is_kept_and_something_is_not(name: str, layout: Layout) -> None:
    found = method(name, keep=0.2, probe_rows=0)
    mask = attend(found, layout).mask
    assert mask.any(-1).all(), "a row of blocks is empty"
    assert not mask.all()
    if layout.text:
        is_first = layout.text_first and found.order(layout.grid, mask.device) is None
        is_first = is_first and not found.moves_tokens
        n = layout.tokens
        text = range(layout.text) if is_first else range(n - layout.text, n)
        assert mask[..., sorted({i // found.block_k for i in text})].all()
        assert mask[..., sorted({i // found.block_q for i in text}), :].all()


@pytest.mark.parametrize("name", METHODS)
def test_a_sample_does_not_depend_on_its_neighbours(name: str) -> None:
    layout = LAYOUTS["video, text after"]
    q, k, v = tokens(layout.tokens)
    found = method(name, keep=0.3)
    both = attend(found, layout)
    memory: dict[str, Any] = {}
    for step in range(2):
        alone = attend_sparsely(found, q[1:], k[1:], v[1:], layout, step=step, memory=memory)
    assert both.output is not None and alone.output is not None
    torch.testing.assert_close(both.output[1:], alone.output, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_a_delta_at_every_query_is_dense_attention_and_inputs_stay_as_they_are(name: str) -> None:
    layout = LAYOUTS["video, text after"]
    given = tokens(layout.tokens)
    copies = [x.clone() for x in given]
    outcome = attend(method(name, keep=0.2, delta=1), layout)
    assert outcome.output is not None and float(outcome.density) < 1
    expected = torch.nn.functional.scaled_dot_product_attention(*given)
    torch.testing.assert_close(outcome.output, expected, atol=2e-5, rtol=0)
    assert all(torch.equal(x, y) for x, y in zip(given, copies, strict=True))


# The clusters of svg2 start from the last ones, whatever these were of.
@pytest.mark.parametrize("name", [name for name in METHODS if name != "svg2"])
def test_another_size_is_not_taken_for_the_one_before(name: str) -> None:
    """What a method noted at one size is of no use at the next; masks are kept per size."""
    found = method(name, keep=0.3)
    memory: dict[str, Any] = {}
    for layout in (LAYOUTS["video, text after"], Layout((4, 6, 6), text=6)):
        q, k, v = tokens(layout.tokens)
        for step in range(2):
            mixed = attend_sparsely(found, q, k, v, layout, step=step, memory=memory)
    assert mixed.output is not None
    fresh = attend(found, layout)
    assert fresh.output is not None and torch.equal(mixed.mask, fresh.mask)
    torch.testing.assert_close(mixed.output, fresh.output)


@pytest.mark.parametrize("name", [name for name, cls in METHODS.items() if cls.takes_mass])
@pytest.mark.parametrize("mass", [0.5, 0.9])
def test_more_mass_keeps_more_and_reaches_it_where_it_is_known(name: str, mass: float) -> None:
    found = method(name, mass=mass, probe_rows=1024)
    outcome, more = attend(found, PICTURE), attend(method(name, mass=1.0), PICTURE)
    assert outcome.mass is not None
    assert float(outcome.density) <= float(more.density)
    if name == "recycled":  # it has seen the exact attention, and nothing has moved since
        assert float(outcome.mass) >= mass


@pytest.mark.parametrize("name", METHODS)
def test_a_larger_share_keeps_more(name: str) -> None:
    # Radial attention can thin out frames of many blocks only.
    layout = Layout((8, 8, 8)) if name == "radial" else LAYOUTS["video, text after"]
    found = [float(attend(method(name, keep=keep), layout).density) for keep in (0.1, 0.4, 0.8)]
    assert found == sorted(found)
    assert found[0] < found[2]


@pytest.mark.parametrize("name", METHODS)
def test_block_sparse_is_the_method_of_that_name(name: str) -> None:
    assert BlockSparse(method=name, keep=0.4, delta=8).resolve() == METHODS[name](  # type: ignore[arg-type]
        keep=0.4, delta=8
    )
    default = METHODS[name]()
    assert BlockSparse(method=name).resolve() == default  # type: ignore[arg-type]
    assert default.resolve() is default


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(METHODS)),
    grid=st.tuples(st.integers(2, 4), st.integers(1, 9), st.integers(2, 9)),
    text=st.integers(0, 9),
    text_first=st.booleans(),
    block_q=st.sampled_from([8, 16, 32]),
)
def test_any_size_of_picture_and_text_fits(
    name: str, grid: tuple[int, int, int], text: int, text_first: bool, block_q: int
) -> None:
    layout = Layout(grid, text, text_first)
    outcome = attend(method(name, keep=0.3, block_q=block_q), layout, batch=1)
    assert outcome.output is not None
    assert outcome.output.isfinite().all()
    assert 0 < float(outcome.density) <= 1
    assert outcome.mass is not None and 0 < float(outcome.mass) <= 1 + 1e-5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": 0.3, "mass": 0.9}, "keep=0.3 and mass=0.9 are two budgets: give one of them"),
        ({"method": "sta", "mass": 0.9}, "sta estimates no attention and cannot reach a mass"),
        ({"method": "xattention", "block_k": 12}, "stride=8 divides neither or only one of"),
        ({"method": "spargel"}, "Input should be 'asa', 'draft'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BlockSparse(**options)
