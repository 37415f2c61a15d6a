"""Relative L1 distance: values, independence of samples, precision, degenerate input, errors."""

import pytest
import torch

from skipstep.kernels.relative_l1 import mean_absolute, relative_l1

torch.set_num_threads(1)


@pytest.mark.parametrize("shape", [(1, 63), (2, 100, 7), (3, 4, 5, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_a_float64_loop_over_samples(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    expected = [
        float((a.double() - b.double()).abs().mean() / b.double().abs().mean())
        for a, b in zip(x, y, strict=True)
    ]
    actual = relative_l1(x, y)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-5, atol=0)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    x, y = torch.randn(5, 1000), torch.randn(5, 1000)
    alone = torch.cat([relative_l1(x[i : i + 1], y[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(relative_l1(x, y), alone, rtol=1e-6, atol=0)


def test_half_precision_sums_do_not_overflow() -> None:
    x = torch.full((1, 4096), 60000.0, dtype=torch.float16)
    assert mean_absolute(x).item() == pytest.approx(60000, rel=1e-3)
    assert relative_l1(-x, x).item() == pytest.approx(2, rel=1e-6)


def test_degenerate_signals_are_never_below_a_threshold() -> None:
    zero, one = torch.zeros(1, 4), torch.ones(1, 4)
    assert relative_l1(zero, zero).isnan().all()
    assert relative_l1(one, zero).isinf().all()
    assert not bool(relative_l1(zero, zero) < 1e9)


def test_noncontiguous_input_is_fine() -> None:
    x, y = torch.randn(2, 6, 8).transpose(1, 2), torch.randn(2, 8, 6)
    torch.testing.assert_close(relative_l1(x, y), relative_l1(x.contiguous(), y))


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"given shapes \(2, 3\) and \(1, 3\)"):
        relative_l1(torch.zeros(2, 3), torch.zeros(1, 3))
