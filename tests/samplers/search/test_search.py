"""Searches on exact scores: more reward for the same evaluations than best of N."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from skipstep.benchmarks.search import beside_best_of_n
from skipstep.samplers.distill.plane import ring
from skipstep.samplers.distill.walk import shifted_nodes, walk
from skipstep.samplers.search.best_of import BestOf
from skipstep.samplers.search.enkg import EnKG
from skipstep.samplers.search.evosearch import EvoSearch
from skipstep.samplers.search.latents import LatentOptimization
from skipstep.samplers.search.particles import Particles, systematic
from skipstep.samplers.search.sampler import Method
from skipstep.testing.mixtures import ExactSampler, Mixture, mixture

WIDE = torch.float64


@pytest.mark.parametrize(
    ("method", "margin"), [(Particles(population=16), 0.23), (EvoSearch(population=8), 0.065)]
)
def test_a_search_ends_nearer_than_best_of_n_at_equal_evaluations(
    method: Method, margin: float
) -> None:
    """The margins over 20 seeds are what `python -m benchmarks.search` prints."""
    ours, theirs, _ = beside_best_of_n(method, seeds=8)
    assert theirs - ours > margin / 2


def test_the_best_ever_seen_survives_and_pictures_come_best_first() -> None:
    sampler = ExactSampler(mixture("ring"), 10)
    found = EvoSearch(population=6).run(
        sampler, lambda x: x[:, 0], torch.Generator().manual_seed(0)
    )
    assert found.history == sorted(found.history) and found.score == found.history[-1]
    assert found.scores == sorted(found.scores, reverse=True)
    assert [float(x[0]) for x in found.pictures] == pytest.approx(found.scores)


def test_a_child_is_a_proper_sample_of_its_node() -> None:
    """States brought back by fresh noise have the distribution they had: a ring stays a ring."""
    sampler = ExactSampler(mixture("ring"), 10)
    generator = torch.Generator().manual_seed(0)
    visit = sampler.walk(sampler.noise(4096, generator), 0, 6, (5, 6))
    again = sampler.renoise(visit.states[6], 6, 5, generator)
    for power in (2, 4):
        expected = visit.states[5].norm(dim=1).pow(power).mean()
        torch.testing.assert_close(again.norm(dim=1).pow(power).mean(), expected, rtol=0.05, atol=0)


def test_systematic_resampling_keeps_everyone_at_equal_weights() -> None:
    rows = systematic(torch.zeros(7), torch.Generator().manual_seed(3))
    assert rows == list(range(7))


def test_noise_is_optimised_through_one_step_and_stays_on_its_shell() -> None:
    """Two steps as the surrogate of sixteen; the measured loss falls to a sixth in 30 updates."""
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))

    def loss(pictures: Tensor) -> Tensor:
        return (pictures @ torch.tensor([1.0, 0.5]) - 1.2).square()

    method = LatentOptimization(iterations=30, rate=0.1, surrogate_steps=2, final_steps=16)
    made, start = method.run(ring(), noise, loss, {})
    before = loss(walk(ring(), noise, shifted_nodes(16), {})).mean()
    assert loss(made).mean() < before / 3
    torch.testing.assert_close(start.norm(dim=1), noise.norm(dim=1), rtol=1e-5, atol=1e-5)
    alone = method.run(ring(), noise[:1], loss, {})[1]
    torch.testing.assert_close(alone, start[:1], rtol=1e-4, atol=1e-4)


def test_a_cloud_finds_the_posterior_mean_of_a_linear_problem() -> None:
    random = torch.Generator().manual_seed(1)
    variances = torch.rand(1, 6, generator=random, dtype=WIDE) * 0.8 + 0.2
    prior = Mixture(torch.full((1, 6), 0.3, dtype=WIDE), variances, torch.zeros(1).long())
    seen_by = torch.randn(6, 3, generator=random, dtype=WIDE) / 6**0.5
    truth = prior.means[0] + variances[0].sqrt() * torch.randn(6, generator=random, dtype=WIDE)
    observed, sigma_y = truth @ seen_by, 0.1
    spread = variances[0].diag()
    gain = (
        spread
        @ seen_by
        @ torch.linalg.inv(seen_by.mT @ spread @ seen_by + sigma_y**2 * torch.eye(3, dtype=WIDE))
    )
    posterior = prior.means[0] + gain @ (observed - prior.means[0] @ seen_by)

    def flow(x: Tensor, t: Tensor, condition: object, s: object = None) -> Tensor:
        time = min(max(float(t[0]), 1e-4), 1 - 1e-6)
        v: Tensor = (x - prior.picture(x / (1 - time), time / (1 - time))) / time
        return v

    noise = torch.randn(512, 6, generator=random, dtype=WIDE)
    cloud = EnKG(sigma_y=sigma_y).run(flow, noise, lambda x: x @ seen_by, observed, {})
    assert (cloud.mean(0) - posterior).norm() < (prior.means[0] - posterior).norm() / 4
    misfit, before = (
        (mean @ seen_by - observed).norm() for mean in (cloud.mean(0), prior.means[0])
    )
    assert misfit < before / 4


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (EvoSearch, {"population": 2, "elites": 2}, "leave no room for children"),
        (EvoSearch, {"schedule": (0.5, 0.0)}, "schedule must rise"),
        (Particles, {"schedule": (0.5, 0.2)}, "schedule must rise"),
        (BestOf, {"populaton": 3}, "Unexpected keyword argument"),
    ],
)
def test_mistakes_are_named(method: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        method(**options)
