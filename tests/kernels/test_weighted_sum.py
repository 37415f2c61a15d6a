"""Weighted sum: values, one rounding in half precision, new memory, errors."""

import pytest
import torch

from skipstep.kernels.weighted_sum import weighted_sum

torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_sample", [False, True])
def test_equals_a_float64_loop_rounded_once(dtype: torch.dtype, per_sample: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(3, 63, generator=generator).to(dtype) for _ in range(4)]
    shape = (4, 3) if per_sample else (4,)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    expected = torch.zeros(3, 63, dtype=torch.float64)
    for j in range(4):
        w = weights[j].reshape(-1, 1) if per_sample else weights[j]
        expected += w * tensors[j].double()
    actual = weighted_sum(tensors, weights.tolist())
    assert actual.dtype == dtype
    # One rounding of the result: 2^-8 relative for bf16, and fp32 sums of four terms.
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-5, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=1e-6)


def test_weights_may_be_tensors_or_numbers() -> None:
    x, y = torch.randn(2, 5), torch.randn(2, 5)
    expected = 2 * x - y
    torch.testing.assert_close(weighted_sum([x, y], [2.0, -1.0]), expected)
    torch.testing.assert_close(weighted_sum([x, y], torch.tensor([2.0, -1.0])), expected)
    torch.testing.assert_close(weighted_sum([x, y], [[2.0, 2.0], [-1.0, -1.0]]), expected)


def test_the_result_is_new_memory_and_the_inputs_stay() -> None:
    x = torch.randn(2, 5)
    before = x.clone()
    out = weighted_sum([x], [1.0])
    out.zero_()
    assert torch.equal(x, before)


def test_cancelling_terms_of_bf16_do_not_lose_the_difference() -> None:
    x = torch.full((1, 4), 256.0, dtype=torch.bfloat16)
    y = torch.full((1, 4), 254.0, dtype=torch.bfloat16)
    # 3 * 256 = 768 and 2.5 * 254 = 635 are not both bf16 numbers; 133 is.
    assert weighted_sum([x, y], [3.0, -2.5]).tolist() == [[133.0] * 4]


def test_errors_say_what_was_given_and_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="no tensors"):
        weighted_sum([], [])
    with pytest.raises(ValueError, match="share one type and shape"):
        weighted_sum([torch.zeros(2, 3), torch.zeros(1, 3)], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"weights of shape \(3,\).*allowed are \[2\] or \[2, 4\]"):
        weighted_sum([torch.zeros(4), torch.zeros(4)], [1.0, 1.0, 1.0])
