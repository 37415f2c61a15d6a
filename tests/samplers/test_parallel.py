"""Parallel in time: the same end in fewer rounds, never a different one at tolerance 0."""

import pytest
import torch
from torch import Tensor

from skipstep.samplers.distill.plane import Mixture, ring
from skipstep.samplers.distill.walk import shifted_nodes, walk
from skipstep.samplers.parallel import parallel_walk, propel

WIDE = torch.float64


def flow() -> Mixture:
    found = ring()
    return Mixture(found.means.double(), found.width)


def noise() -> Tensor:
    return torch.randn(32, 2, generator=torch.Generator().manual_seed(0), dtype=WIDE)


@pytest.mark.parametrize("memory", [0, 2])
def test_at_tolerance_zero_it_is_the_walk_one_after_another(memory: int) -> None:
    nodes = shifted_nodes(12, 2.0)
    found = parallel_walk(flow(), noise(), nodes, {}, window=5, tolerance=0, memory=memory)
    torch.testing.assert_close(found.x, walk(flow(), noise(), nodes, {}), rtol=0, atol=1e-12)
    assert found.rounds <= 12


def test_fifty_steps_take_an_eighth_of_the_rounds_here() -> None:
    nodes = shifted_nodes(50)
    found = parallel_walk(flow(), noise(), nodes, {}, window=50, tolerance=1e-2)
    assert found.rounds <= 10 and found.evaluations > 3 * 50
    truth = walk(flow(), noise(), nodes, {})
    assert (found.x - truth).abs().max() < 1e-2


def test_anderson_saves_rounds_and_leaves_batch_neighbours_alone() -> None:
    nodes = shifted_nodes(25)
    plain, mixed = (
        parallel_walk(flow(), noise(), nodes, {}, window=25, tolerance=1e-2, memory=memory)
        for memory in (0, 2)
    )
    assert mixed.rounds < plain.rounds
    alone = parallel_walk(flow(), noise()[:1], nodes, {}, window=25, tolerance=0, memory=2)
    beside = parallel_walk(flow(), noise()[:2], nodes, {}, window=25, tolerance=0, memory=2)
    torch.testing.assert_close(alone.x, beside.x[:1], rtol=0, atol=1e-12)


def test_conditions_go_with_their_rows() -> None:
    aim = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=WIDE)

    def towards(x: Tensor, t: Tensor, condition: object, s: object = None) -> Tensor:
        assert isinstance(condition, dict)
        v: Tensor = (x - condition["aim"]) / t[:, None]
        return v

    found = parallel_walk(towards, noise()[:3], shifted_nodes(6), {"aim": aim}, window=4)
    torch.testing.assert_close(found.x, aim, rtol=0, atol=1e-6)


def test_an_optimisers_loop_ends_where_it_would_have_in_fewer_rounds() -> None:
    slopes = torch.linspace(0.5, 1.5, 10, dtype=WIDE)

    def momentum(state: Tensor, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        state = 0.5 * state + gradient
        return state, x - 0.1 * state

    start = torch.zeros(10, dtype=WIDE)
    state, x = torch.zeros(10, dtype=WIDE), start
    for _ in range(60):
        state, x = momentum(state, x, slopes * (x - 1))
    found = propel(
        lambda many, steps: slopes * (many - 1),
        momentum,
        torch.zeros(10, dtype=WIDE),
        start,
        60,
        tolerance=1e-8,
        adapt=1.0,
    )
    assert found.rounds < 40
    torch.testing.assert_close(found.x, x, rtol=0, atol=1e-3)


def test_senseless_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="window=0"):
        parallel_walk(flow(), noise(), (1.0, 0.0), {}, window=0)
