"""Quantised attention: errors beside bf16, smoothing, groups, lists, poison, the kernel."""

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import avg_pool1d, scaled_dot_product_attention

from skipstep.kernels.block_layout import BlockLists, all_blocks, from_bool
from skipstep.kernels.block_sparse_attention import block_sparse_attention_ref
from skipstep.kernels.quant_attention import (
    groups_of,
    quantize_qk,
    quantize_rows,
    quantized_attention,
)

torch.set_num_threads(1)

KERNEL = "triton" if torch.cuda.is_available() else "interpret"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FP8: dict[str, Any] = {"pv": "fp8"}


Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def peaked(outlier: float, n: int = 512, d: int = 64) -> Tensors:
    """Draw neighbours that attend to each other, with a few large channels in Q and K."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    base = noise(1, 2, n, d)
    smooth = avg_pool1d(base.transpose(2, 3).reshape(2, d, n), 65, 1, 32).reshape(1, 2, d, n)
    base = base + 6 * smooth.transpose(2, 3)
    large = (torch.rand(1, 2, 1, d, generator=generator) < 0.1) * outlier
    q = base + 0.5 * noise(1, 2, n, d) + 0.5 * large * noise(1, 2, 1, d)
    k = base + 0.5 * noise(1, 2, n, d) + large * noise(1, 2, 1, d)
    return q, k, noise(1, 2, n, d) + 0.3


def relative_l1(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected).abs().sum() / expected.abs().sum())


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(q.double(), k.double(), v.double())


@pytest.mark.parametrize(
    ("options", "outlier", "bound"),
    [
        ({}, 0.0, 0.003),
        ({"groups": "token"}, 0.0, 0.002),
        ({"groups": "thread"}, 0.0, 0.003),
        ({}, 20.0, 0.035),
        ({"smooth_q": True}, 20.0, 0.012),
        ({"bits": 4, "smooth_q": True, "groups": "thread"}, 0.0, 0.04),
        ({"pv": "fp8"}, 0.0, 0.03),
    ],
)
def test_errors_are_those_of_the_notes(
    options: dict[str, Any], outlier: float, bound: float
) -> None:
    q, k, v = peaked(outlier)
    assert relative_l1(quantized_attention(q, k, v, **options), exact(q, k, v)) < bound


def test_int8_scores_err_at_most_four_times_as_bf16_attention() -> None:
    for outlier in (0.0, 8.0, 20.0):
        q, k, v = peaked(outlier)
        expected = exact(q, k, v)
        rounded = scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
        bound = 4 * relative_l1(rounded, expected) + 2e-3
        assert relative_l1(quantized_attention(q, k, v), expected) < bound


def test_smooth_k_lowers_the_error_and_corrects_the_log_sum_exp() -> None:
    q, k, v = peaked(20.0)
    expected = exact(q, k, v)
    _, exact_lse = block_sparse_attention_ref(
        q.double(), k.double(), v.double(), all_blocks(512, 512)
    )
    plain, _ = quantized_attention(q, k, v, smooth_k=False, return_lse=True)
    smooth, lse = quantized_attention(q, k, v, return_lse=True)
    assert relative_l1(smooth, expected) < 0.5 * relative_l1(plain, expected)
    # Scores reach 70 here, and one step of int8 is 1 / 254 of the largest of a group.
    assert float((lse - exact_lse).abs().mean()) < 0.05


def test_rounding_is_exact_on_integers_and_groups_are_as_published() -> None:
    x = torch.arange(-127, 128).float().view(1, 1, 255, 1)
    x8, scale = quantize_rows(x, torch.zeros(255, dtype=torch.long), 127)
    assert torch.equal(x8.float(), x) and bool((scale == 1).all())
    cpu = torch.device("cpu")
    assert len(set(groups_of(128, "thread", 128, False, cpu).tolist())) == 4 * 8
    assert len(set(groups_of(64, "thread", 64, True, cpu).tolist())) == 4
    assert groups_of(64, "thread", 64, True, cpu)[[0, 1, 8, 9]].tolist() == [0] * 4
    assert groups_of(64, "thread", 128, False, cpu)[[3, 11, 19, 27]].tolist() == [3] * 4
    assert set(groups_of(200, "block", 128, False, cpu).tolist()) == {0, 128}


def test_a_block_of_zeros_is_no_division_by_zero() -> None:
    q, k, v = peaked(0.0)
    q[:, :, :128], k[:, :, 64:128] = 0, 0
    for smooth_k in (False, True):
        assert quantized_attention(q, k, v, smooth_k=smooth_k).isfinite().all()
    zero = torch.zeros(1, 1, 64, 32)
    assert torch.equal(quantized_attention(zero, zero, zero, pv="fp8"), zero)


def test_inputs_are_not_changed() -> None:
    tensors = peaked(8.0)
    copies = [x.clone() for x in tensors]
    quantized_attention(*tensors, smooth_q=True, pv="fp8")
    assert all(torch.equal(x, y) for x, y in zip(tensors, copies, strict=True))


def ragged_lists(seed: int) -> BlockLists:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(1, 2, 4, 8, generator=generator) < 0.5
    kept[..., 0, :] = False
    return from_bool(kept, block_q=64, block_k=32)


def test_lists_choose_the_keys() -> None:
    q, k, v = (x[:, :, :250] for x in peaked(0.0))
    lists = ragged_lists(0)
    expected, expected_lse = block_sparse_attention_ref(q.double(), k.double(), v.double(), lists)
    o, lse = quantized_attention(q, k, v, lists, groups="token", return_lse=True)
    assert relative_l1(o, expected) < 0.01
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-2, atol=5e-2)
    assert (o[:, :, :64] == 0).all() and (lse[:, :, :64] == -math.inf).all()


def test_padding_moves_no_scale_and_no_mean() -> None:
    q, k, v = peaked(0.0, n=256)
    lens = torch.tensor([150])
    k2, v2 = k.clone(), v.clone()
    k2[:, :, 150:], v2[:, :, 150:] = math.nan, math.nan
    for options in ({}, FP8):
        whole = quantized_attention(q, k2, v2, kv_lens=lens, **options)
        cut = quantized_attention(q, k[:, :, :150], v[:, :, :150], **options)
        torch.testing.assert_close(whole, cut, rtol=1e-4, atol=1e-5)


def test_grouped_queries_equal_repeated_keys_and_layouts_agree() -> None:
    q, k, v = peaked(0.0, n=100)
    one, two = k[:, :1], v[:, :1]
    repeated = quantized_attention(q, one.repeat(1, 2, 1, 1), two.repeat(1, 2, 1, 1))
    torch.testing.assert_close(quantized_attention(q, one, two), repeated)
    q, one, two = (x.transpose(1, 2).contiguous() for x in (q, one, two))
    actual = quantized_attention(q, one, two, layout="BNHD")
    torch.testing.assert_close(actual.transpose(1, 2), repeated)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"groups": "thread", "smooth_q": True},
        {"bits": 4, "groups": "block", "smooth_q": True},
        {"pv": "fp8", "groups": "thread"},
    ],
    ids=["sage1", "thread_smooth_q", "int4", "fp8"],
)
def test_the_kernel_computes_what_torch_emulates(options: dict[str, Any]) -> None:
    q, k, v = (x[:, :, :250].to(DEVICE) for x in peaked(8.0))
    lists = ragged_lists(1).to(DEVICE)
    o, lse = quantized_attention(q, k, v, lists, return_lse=True, backend=KERNEL, **options)
    expected, expected_lse = quantized_attention(
        q, k, v, lists, return_lse=True, backend="torch", **options
    )
    # The interpreter cuts fp8 numbers off where torch rounds them.
    bound = 0.1 if options.get("pv") == "fp8" else 1e-5
    assert relative_l1(o, expected.double()) < bound
    torch.testing.assert_close(lse, expected_lse, rtol=1e-5, atol=1e-4)


def test_the_kernel_takes_16_bit_values() -> None:
    q, k, v = (x[:, :, :128].to(DEVICE).bfloat16() for x in peaked(0.0))
    o = quantized_attention(q, k, v, backend=KERNEL)
    assert o.dtype == torch.bfloat16
    assert relative_l1(o, exact(q, k, v)) < 0.02


def test_large_values_do_not_overflow_in_half_precision() -> None:
    q, k, v = peaked(0.0, n=256)
    o = quantized_attention(q.half(), k.half(), (v.abs() * 1e4).half())
    assert o.isfinite().all()


def test_torch_accepts_the_op() -> None:
    q, k, v = peaked(0.0, n=64, d=32)
    quant = quantize_qk(q, k)
    lists = all_blocks(64, 64)
    args = (quant.q8, quant.q_scale, quant.k8, quant.k_scale, None, v, lists.idx, lists.cnt)
    rest = (None, None, None, 128, 64, 1, 0.2, True, "auto")
    # Dispatch under compilation is tested in test_compiled.py.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    op = torch.ops.skipstep.quantized_attention
    torch.library.opcheck(op, (*args, *rest), test_utils=checks)


@pytest.mark.usefixtures("as_users_see_it")
def test_errors_say_what_was_given() -> None:
    q, k, v = peaked(0.0, n=64, d=32)
    with pytest.raises(ValueError, match="bits=5: 4 and 8"):
        quantized_attention(q, k, v, bits=5)
    with pytest.raises(ValueError, match="pv='fp16'"):
        quantized_attention(q, k, v, pv="fp16")  # type: ignore[call-overload] # the mistake
    with pytest.raises(ValueError, match="groups='row'"):
        quantized_attention(q, k, v, groups="row")  # type: ignore[call-overload] # the mistake
