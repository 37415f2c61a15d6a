"""Block-sparse attention: definition, poison, layouts, lists, gradients, compilation, errors."""

import dataclasses
import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from skipstep.kernels.block_layout import (
    BlockLists,
    all_blocks,
    blocks_of,
    from_bool,
    longest_first,
)
from skipstep.kernels.block_sparse_attention import (
    _attention,
    block_sparse_attention,
    block_sparse_attention_ref,
    merge,
)
from skipstep.kernels.kept_keys import kept_keys

torch.set_num_threads(1)

BACKENDS = ["torch", "triton" if torch.cuda.is_available() else "interpret"]

# Relative L2 distance to float64 over the same inputs (docs/kernels.md).
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}


class Case(NamedTuple):
    """Inputs of one call."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    lists: BlockLists


def make_case(
    seed: int,
    *,
    batch: int = 1,
    heads: int = 2,
    kv_heads: int = 2,
    n: int = 200,
    m: int = 150,
    d: int = 32,
    block_q: int = 64,
    block_k: int = 32,
    density: float = 0.5,
    dtype: torch.dtype = torch.float32,
    size: float = 1.0,
) -> Case:
    """Draw inputs and lists; what the lists must never lead to is wild."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads, n, d, generator=generator) * size
    k = torch.randn(batch, kv_heads, m, d, generator=generator)
    v = torch.randn(batch, kv_heads, m, d, generator=generator)
    nq, nk = blocks_of(n, block_q), blocks_of(m, block_k)
    kept = torch.rand(batch, heads, nq, nk, generator=generator) < density
    lists = from_bool(kept, block_q=block_q, block_k=block_k)
    behind = torch.arange(nk) >= lists.cnt[..., None]
    lists = BlockLists(lists.idx.masked_fill(behind, 2**30), lists.cnt, nk, block_q, block_k)
    return Case(q.to(dtype), k.to(dtype), v.to(dtype), lists)


def definition(case: Case, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the definition in float64."""
    q, k, v, lists = case
    return block_sparse_attention_ref(q.double(), k.double(), v.double(), lists, **options)


def relative_l2(actual: torch.Tensor, expected: torch.Tensor) -> float:
    difference = actual.double() - expected
    return float(difference.norm() / expected.norm().clamp_min(1e-30))


def assert_is_attention(
    case: Case, backend: str, tolerance: float | None = None, **options: Any
) -> None:
    """Compare output and log-sum-exp with float64."""
    expected, expected_lse = definition(case, **options)
    if backend == "triton":
        case = Case(case.q.cuda(), case.k.cuda(), case.v.cuda(), case.lists.to("cuda"))
    o, lse = block_sparse_attention(*case, return_lse=True, backend=backend, **options)
    assert o.dtype == case.q.dtype and o.isfinite().all()
    o, lse = o.cpu(), lse.cpu()
    assert relative_l2(o, expected) < (tolerance or TOLERANCE[case.q.dtype])
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_definition_in_float64(backend: str, dtype: torch.dtype) -> None:
    assert_is_attention(make_case(0, dtype=dtype, batch=2), backend)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 999),
    heads=st.sampled_from([(1, 1), (2, 1), (3, 3)]),
    n=st.integers(1, 300),
    m=st.integers(1, 300),
    d=st.sampled_from([16, 32, 80]),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_any_lengths_in_plain_torch(
    seed: int, heads: tuple[int, int], n: int, m: int, d: int, density: float
) -> None:
    h, hk = heads
    case = make_case(seed, batch=2, heads=h, kv_heads=hk, n=n, m=m, d=d, density=density)
    assert_is_attention(case, "torch")


def test_full_lists_are_scaled_dot_product_attention() -> None:
    q, k, v = torch.randn(3, 2, 3, 130, 32).unbind()
    actual = block_sparse_attention(q, k, v, all_blocks(130, 130))
    torch.testing.assert_close(actual, scaled_dot_product_attention(q, k, v), rtol=1e-5, atol=1e-6)


def test_what_no_list_names_is_never_read() -> None:
    case = make_case(1, density=0.3)
    seen = kept_keys(case.lists, 200, 150, 1).any(2)[..., None]
    poisoned = case._replace(
        k=case.k.masked_fill(~seen, math.nan), v=case.v.masked_fill(~seen, math.nan)
    )
    assert not seen.all()
    assert torch.equal(block_sparse_attention(*poisoned), block_sparse_attention(*case))


def test_rows_without_keys_are_zero() -> None:
    case = make_case(2, density=0.0)
    o, lse = block_sparse_attention(*case, return_lse=True)
    assert (o == 0).all() and (lse == -math.inf).all()


def test_keys_beyond_the_length_of_a_batch_entry_do_not_count() -> None:
    case = make_case(3, batch=2, density=1.0)
    lens = torch.tensor([150, 70])
    k, v = case.k.clone(), case.v.clone()
    k[1, :, 70:], v[1, :, 70:] = math.nan, math.nan
    actual = block_sparse_attention(case.q, k, v, case.lists, kv_lens=lens)
    short = scaled_dot_product_attention(case.q[1:], k[1:, :, :70], v[1:, :, :70])
    torch.testing.assert_close(actual[1:], short, rtol=1e-5, atol=1e-6)
    whole = scaled_dot_product_attention(case.q[:1], k[:1], v[:1])
    torch.testing.assert_close(actual[:1], whole, rtol=1e-5, atol=1e-6)


def test_short_blocks_end_where_their_keys_end() -> None:
    case = make_case(4, m=128, density=0.7)
    valid = torch.tensor([32, 5, 0, 31], dtype=torch.int32)
    rows = torch.arange(128) % 32 < valid.repeat_interleave(32)
    lists = BlockLists(case.lists.idx, case.lists.cnt, 4, 64, 32, kv_valid=valid)
    poisoned = case.k.masked_fill(~rows[:, None], math.nan)
    expected, _ = definition(case._replace(lists=lists))
    actual = block_sparse_attention(case.q, poisoned, case.v, lists)
    assert relative_l2(actual, expected) < 2e-6


def test_lists_may_be_shared_by_batch_and_heads() -> None:
    case = make_case(5, batch=2)
    lists = BlockLists(case.lists.idx[:1, :1], case.lists.cnt[:1, :1], 5, 64, 32)
    repeated = BlockLists(lists.idx.expand(2, 2, -1, -1), lists.cnt.expand(2, 2, -1), 5, 64, 32)
    assert torch.equal(
        block_sparse_attention(*case._replace(lists=lists)),
        block_sparse_attention(*case._replace(lists=repeated)),
    )


def test_layouts_and_strides_give_the_same() -> None:
    case = make_case(6, batch=2)
    expected = block_sparse_attention(*case)
    q, k, v = (x.transpose(1, 2).contiguous() for x in case[:3])
    actual = block_sparse_attention(q, k, v, case.lists, layout="BNHD")
    torch.testing.assert_close(actual.transpose(1, 2), expected, rtol=1e-6, atol=1e-6)
    wide = torch.cat([x.repeat(1, 1, 1, 2) for x in case[:1]])[..., ::2]
    assert not wide.is_contiguous()
    one = case.k[:, :1].expand(-1, 2, -1, -1)
    torch.testing.assert_close(
        block_sparse_attention(case.q, one, one, case.lists),
        block_sparse_attention(case.q, one.contiguous(), one.contiguous(), case.lists),
    )


def test_the_order_inside_a_list_does_not_matter() -> None:
    case = make_case(7, density=1.0)
    shuffled = case.lists.idx[..., torch.randperm(5)]
    lists = BlockLists(shuffled, case.lists.cnt, 5, 64, 32)
    torch.testing.assert_close(
        block_sparse_attention(*case._replace(lists=lists)),
        block_sparse_attention(*case),
        rtol=1e-5,
        atol=1e-6,
    )


def test_results_over_two_halves_merge_to_the_whole() -> None:
    case = make_case(8, density=0.6)
    kept = case.lists.to_bool()
    first = kept & (torch.rand(kept.shape) < 0.5)
    halves = [from_bool(part, block_q=64, block_k=32) for part in (first, kept & ~first)]
    parts = [block_sparse_attention(*case._replace(lists=x), return_lse=True) for x in halves]
    o, lse = merge(*parts)
    expected, expected_lse = block_sparse_attention(*case, return_lse=True)
    torch.testing.assert_close(o, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, expected_lse)


@pytest.mark.parametrize("backend", BACKENDS)
def test_huge_scores_stay_finite(backend: str) -> None:
    # Scores near 1e4 carry an error of 1e-3 in fp32 before any exponential is taken.
    assert_is_attention(make_case(9, size=1e4, n=100), backend, tolerance=5e-3)


KERNEL = BACKENDS[1]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@settings(max_examples=6)
@given(
    seed=st.integers(0, 999),
    heads=st.sampled_from([(1, 1), (2, 1)]),
    n=st.integers(1, 150),
    m=st.integers(1, 150),
    d=st.sampled_from([16, 32, 80]),
    blocks=st.sampled_from([(64, 64), (128, 64), (48, 32), (100, 40)]),
    density=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_any_lengths_in_the_kernel(
    seed: int,
    heads: tuple[int, int],
    n: int,
    m: int,
    d: int,
    blocks: tuple[int, int],
    density: float,
) -> None:
    h, hk = heads
    block_q, block_k = blocks
    case = make_case(
        seed,
        heads=h,
        kv_heads=hk,
        n=n,
        m=m,
        d=d,
        block_q=block_q,
        block_k=block_k,
        density=density,
    )
    assert_is_attention(case, KERNEL)


def test_the_kernel_reads_and_writes_what_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(15, n=200, m=150, block_k=64, density=0.4)
    lens, valid = torch.tensor([140]), torch.tensor([64, 7, 22], dtype=torch.int32)
    lists = longest_first(dataclasses.replace(case.lists, kv_valid=valid), 1, 2)
    on_device = lists.to(DEVICE)
    expected, expected_lse = definition(case._replace(lists=lists), kv_lens=lens)
    seen = kept_keys(lists, 200, 150, 1, lens).any(2)[..., None]
    empty_like, empty = torch.empty_like, torch.empty
    # Nothing is written around the outputs, and nothing is read that no list names.
    guard = torch.full((1, 2, 200 + 8, 32 + 8), 7.0, device=DEVICE)
    inside = guard[:, :, 4:-4, 4:-4]
    monkeypatch.setattr(torch, "empty_like", lambda x: inside.fill_(math.nan))
    monkeypatch.setattr(torch, "empty", lambda *a, **o: empty(*a, **o).fill_(math.nan))
    k, v = (x.masked_fill(~seen, math.nan).to(DEVICE) for x in case[1:3])
    # The longer strides are those of a buffer that holds heads behind tokens.
    q = case.q.transpose(1, 2).contiguous().transpose(1, 2).to(DEVICE)
    o, lse = _attention._init_fn(
        *(q, k, v, on_device.idx, on_device.cnt, on_device.order, on_device.kv_valid),
        *(lens.to(DEVICE), 64, 64, 3, 32**-0.5, 0.0, KERNEL),
    )
    monkeypatch.undo()
    assert torch.empty_like is empty_like
    assert relative_l2(o.cpu(), expected) < 2e-6
    torch.testing.assert_close(lse.cpu().double(), expected_lse, rtol=1e-5, atol=1e-5)
    inside.fill_(7.0)
    assert bool((guard == 7.0).all())


def test_large_blocks_are_cut_into_tiles() -> None:
    case = make_case(16, heads=1, kv_heads=1, n=400, m=150, block_q=384, block_k=128)
    assert_is_attention(case, KERNEL)


def test_layouts_of_the_kernel() -> None:
    case = make_case(17, n=130, m=100, d=16, block_k=64)
    q, k, v = (x.transpose(1, 2).contiguous().to(DEVICE) for x in case[:3])
    lists = case.lists.to(DEVICE)
    actual = block_sparse_attention(q, k, v, lists, layout="BNHD", backend=KERNEL)
    assert actual.is_contiguous()
    torch.testing.assert_close(
        actual.transpose(1, 2).cpu(), block_sparse_attention(*case), rtol=1e-5, atol=1e-5
    )


def test_skipping_weak_blocks_errs_by_no_more_than_they_weigh() -> None:
    case = make_case(18, n=64, m=160, density=1.0)
    case.k[:, :, 32:].mul_(0.01)
    case.k[:, :, :32] = 4 * case.q.mean(2, keepdim=True)
    q, k, v = (x.to(DEVICE) for x in case[:3])
    lists = case.lists.to(DEVICE)
    exact = block_sparse_attention(q, k, v, lists, backend=KERNEL)
    none = block_sparse_attention(q, k, v, lists, backend=KERNEL, skip_below=1e-30)
    assert torch.equal(none, exact)
    weak = block_sparse_attention(q, k, v, lists, backend=KERNEL, skip_below=0.5)
    _, lse = block_sparse_attention(q, k, v, lists, backend=KERNEL, skip_below=1.0, return_lse=True)
    assert weak.isfinite().all() and lse.isfinite().all()
    # A row's weight outside its first block bounds what leaving blocks out can change.
    scores = (case.q @ case.k.mT) * 32**-0.5
    left = scores.softmax(-1)[..., 32:].sum(-1, keepdim=True).to(DEVICE)
    largest = v.abs().amax()
    assert bool(((weak - exact).abs() <= 2 * left * largest + 1e-5).all())


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_gradients_are_those_of_the_definition(kv_heads: int) -> None:
    case = make_case(11, batch=2, kv_heads=kv_heads, n=100, m=70, d=16, dtype=torch.float64)
    lens = torch.tensor([70, 41])
    inputs = [x.requires_grad_() for x in case[:3]]
    weights, lse_weights = torch.randn(case.q.shape), torch.randn(case.q.shape[:3])

    def gradients(o: torch.Tensor, lse: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss = (o * weights).sum() + (lse * lse_weights)[lse.isfinite()].sum()
        return torch.autograd.grad(loss, inputs)

    actual = gradients(*block_sparse_attention(*case, kv_lens=lens, return_lse=True))
    expected = gradients(*block_sparse_attention_ref(*case, kv_lens=lens))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("kv_heads", "dtype", "d"),
    [(1, torch.float32, 32), (2, torch.bfloat16, 32), (2, torch.float32, 80)],
)
def test_the_kernels_gradients_are_those_of_the_definition(
    kv_heads: int, dtype: torch.dtype, d: int
) -> None:
    case = make_case(14, kv_heads=kv_heads, n=100, m=150, d=d, block_k=64, density=0.6, dtype=dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lens = torch.tensor([140])
    weights, lse_weights = torch.randn(case.q.shape), torch.randn(case.q.shape[:3])

    def gradients(attention: Any, wide: torch.dtype, place: str, **options: Any) -> Any:
        inputs = [x.to(place, wide).requires_grad_() for x in case[:3]]
        lists = case.lists.to(place)
        o, lse = attention(*inputs, lists, kv_lens=lens.to(place), **options)
        loss = (o * weights.to(o)).sum() + (lse * lse_weights.to(lse))[lse.isfinite()].sum()
        return torch.autograd.grad(loss, inputs)

    kernel = {"return_lse": True, "backend": BACKENDS[1]}
    actual = gradients(block_sparse_attention, dtype, device, **kernel)
    expected = gradients(block_sparse_attention_ref, torch.float64, "cpu")
    for a, e in zip(actual, expected, strict=True):
        assert relative_l2(a.cpu(), e) < {torch.float32: 5e-6, torch.bfloat16: 2e-2}[dtype]


def test_torch_accepts_the_op() -> None:
    case = make_case(12, n=70, m=50, d=16)
    lists = case.lists
    tensors = [x.requires_grad_() for x in case[:3]]
    rest = (lists.idx, lists.cnt, None, None, None, 64, 32, 2, 0.25, 0.0, "auto")
    # Dispatch under compilation is tested in test_compiled.py.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    op = torch.ops.skipstep.block_sparse_attention
    torch.library.opcheck(op, (*tensors, *rest), test_utils=checks)


@pytest.mark.usefixtures("as_users_see_it")
def test_a_compiled_graph_has_no_break() -> None:
    case = make_case(13)

    def layer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        o, lse = block_sparse_attention(2 * q, k, v, case.lists, return_lse=True)
        return o + lse.clamp_min(0)[..., None]

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*case[:3]), layer(*case[:3]))


@pytest.mark.usefixtures("as_users_see_it")
def test_errors_say_what_was_given() -> None:
    q, k, v, lists = make_case(10)
    with pytest.raises(ValueError, match=r"lists of 4 query and 5 key blocks.*make 2 and 5"):
        block_sparse_attention(q[:, :, :100], k, v, lists)
    with pytest.raises(ValueError, match="2 query heads for 3 key heads"):
        block_sparse_attention(q, k.repeat(1, 2, 1, 1)[:, :3], v.repeat(1, 2, 1, 1)[:, :3], lists)
    with pytest.raises(ValueError, match="use one type"):
        block_sparse_attention(q, k.half(), v.half(), lists)
    with pytest.raises(ValueError, match="one length per batch entry"):
        block_sparse_attention(q, k, v, lists, kv_lens=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="'fast': allowed are auto, triton, interpret, torch"):
        block_sparse_attention(q, k, v, lists, backend="fast")
