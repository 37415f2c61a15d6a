"""Frechet distance: closed forms of Gaussians, an independent formula, projections, refusals."""

import pytest
import torch

from skipstep.pipelines.metrics.frechet import fit_projection, frechet_distance


def gaussian(count: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


def test_distance_of_a_set_to_itself_is_zero() -> None:
    x = gaussian(50, 8, seed=0)
    assert abs(frechet_distance(x, x)) < 1e-9


def test_shift_costs_its_squared_length() -> None:
    x, shift = gaussian(63, 5, seed=0), torch.arange(5.0)
    assert frechet_distance(x, x + shift) == pytest.approx(30.0, abs=1e-9)


def test_scaling_costs_the_squared_difference_of_standard_deviations() -> None:
    """For y = s x about its mean: d^2 = (s - 1)^2 tr C, since the roots commute."""
    x = gaussian(100, 6, seed=1)
    y = x.mean(0) + 3 * (x - x.mean(0))
    assert frechet_distance(x, y) == pytest.approx(4 * float(torch.cov(x.T).trace()), rel=1e-9)


def test_equals_the_formula_with_eigenvalues_of_the_product() -> None:
    x, y = gaussian(200, 7, seed=2), gaussian(150, 7, seed=3) @ gaussian(7, 7, seed=4) + 1
    cov_x, cov_y = torch.cov(x.T), torch.cov(y.T)
    root = torch.linalg.eigvals(cov_x @ cov_y).real.clamp(min=0).sqrt().sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + cov_x.trace() + cov_y.trace() - 2 * root
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-8)


def test_fewer_samples_than_features_stay_finite_and_symmetric() -> None:
    x, y = gaussian(10, 32, seed=5), gaussian(12, 32, seed=6)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-8)
    assert frechet_distance(x, y) > 0


def test_projection_keeps_all_variance_of_low_dimensional_features() -> None:
    x = (gaussian(40, 3, seed=7) @ gaussian(3, 20, seed=8)).float()
    coordinates = fit_projection(x, count=3).apply(x)
    assert coordinates.shape == (40, 3)
    variance = x.double().var(0).sum()
    torch.testing.assert_close(coordinates.var(0).sum(), variance, rtol=1e-5, atol=0)


@pytest.mark.usefixtures("as_users_see_it")
def test_different_features_and_single_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="project both with one Projection"):
        frechet_distance(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="at least 2 samples"):
        frechet_distance(torch.zeros(1, 2), torch.zeros(4, 2))
