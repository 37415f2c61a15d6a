"""Recording trajectories: the products of what was shown, and no run mixed with another."""

import pytest
import torch

from skipstep.caching.base import Seen, Step
from skipstep.caching.trajectory import TrajectoryCalibration, TrajectoryGate


def show(gate: TrajectoryGate, features: torch.Tensor, count: int | None = None) -> None:
    """Show a gate a run of features [b, t, ...]."""
    state = gate.init(features.shape[0])
    for i in range(features.shape[1]):
        step = Step(i, count or features.shape[1])
        assert all(choice.compute for choice in gate.decide(state, step, None))
        rows = list(range(features.shape[0]))
        gate.observe(state, Seen(step, rows, None, features[:, i], features[:, i]))


def test_the_record_holds_the_products_of_all_steps_scaled() -> None:
    gate = TrajectoryGate()
    runs = [torch.randn(2, 5, 3, 4), torch.randn(1, 5, 3, 4)]
    for features in runs:
        show(gate, features)
    flat = torch.cat(runs).flatten(2).double()
    products = flat @ flat.mT
    scale = flat.square().sum(2).mean(1)[:, None, None]
    torch.testing.assert_close(gate.record.grams(), products / scale)


def test_small_differences_of_large_features_survive() -> None:
    gate = TrajectoryGate()
    base, change = torch.full((1, 1, 4096), 100.0), 1e-3 * torch.randn(1, 1, 4096)
    show(gate, torch.cat([base, base + change], dim=1))
    gram = gate.record.grams()[0]
    c = torch.tensor([1.0, -1.0], dtype=torch.float64)
    exact = ((base + change).double() - base.double()).square().sum() / (1e4 * 4096)
    torch.testing.assert_close(c @ gram @ c, exact, rtol=1e-3, atol=0)


def test_features_that_the_model_reuses_in_place_are_recorded_as_they_were() -> None:
    gate, buffer = TrajectoryGate(), torch.ones(1, 3)
    state = gate.init(1)
    for i in range(2):
        buffer.fill_(i + 1.0)
        gate.observe(state, Seen(Step(i, 2), [0], None, buffer, buffer))
    torch.testing.assert_close(
        gate.record.grams()[0], torch.tensor([[3.0, 6.0], [6.0, 12.0]], dtype=torch.float64) / 7.5
    )


def test_unfinished_runs_are_left_out_and_other_lengths_refused() -> None:
    record = TrajectoryCalibration().record
    with pytest.raises(ValueError, match="no finished run"):
        record.grams()
    gate = TrajectoryGate()
    show(gate, torch.randn(1, 3, 4), count=6)
    with pytest.raises(ValueError, match="no finished run"):
        gate.record.grams()
    show(gate, torch.randn(1, 6, 4))
    assert gate.record.grams().shape == (1, 6, 6)
    with pytest.raises(ValueError, match="runs of 6 steps and was given one of 7"):
        show(gate, torch.randn(1, 7, 4))


def test_a_span_without_a_feature_and_missing_rows_are_refused() -> None:
    gate = TrajectoryGate()
    with pytest.raises(ValueError, match="no feature"):
        gate.observe(gate.init(1), Seen(Step(0, 2), [0], None, torch.ones(1, 2), None))
    with pytest.raises(ValueError, match="it needs all"):
        one = torch.ones(1, 2)
        gate.observe(gate.init(2), Seen(Step(0, 2), [1], None, one, one))
