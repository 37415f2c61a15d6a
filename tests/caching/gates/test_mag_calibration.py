"""Calibration: the recorded ratios are the ones the features were built with."""

import pytest
import torch
from torch import Tensor

from skipstep.caching.base import Seen, Step
from skipstep.caching.gates.mag_calibration import MagCalibration, MagnitudeRecord, token_norms

torch.set_num_threads(1)

TRUE = [1.0, 1.5, 0.8, 1.1, 0.9]


def run(gate: MagCalibration, ratios: list[float], base: Tensor) -> None:
    """Show the gate features whose token norms follow `ratios`, in random directions."""
    state, scale = gate.init(base.shape[0]), 1.0
    rows = list(range(base.shape[0]))
    for index, ratio in enumerate(ratios):
        scale *= ratio
        step = Step(index, len(ratios))
        assert all(c.compute and c.why == "calibration" for c in gate.decide(state, step, None))
        turned = base * (torch.randint(0, 2, base.shape) * 2 - 1)
        gate.observe(state, Seen(step, rows, None, base, turned * scale))


@pytest.mark.parametrize(
    "shape", [(2, 63, 8), (1, 4, 6, 6), (2, 4, 3, 5, 5)], ids=["tokens", "picture", "video"]
)
def test_ratios_are_those_of_the_features(shape: tuple[int, ...]) -> None:
    gate = MagCalibration()
    run(gate, TRUE, torch.randn(shape))
    run(gate, TRUE, torch.randn(shape))
    found = gate.record.ratios({"model": "toy"})
    assert found.ratios == pytest.approx(TRUE, rel=1e-5)
    assert found.samples == 2 * shape[0] and found.fingerprint == {"model": "toy"}
    assert gate.record.spread() == pytest.approx(0, abs=1e-5)


def test_runs_are_averaged_and_the_spread_is_said() -> None:
    gate = MagCalibration()
    run(gate, [1.0, 1.2, 1.0], torch.randn(1, 9, 4))
    run(gate, [1.0, 1.6, 1.0], torch.randn(1, 9, 4))
    assert gate.record.ratios().ratios == pytest.approx([1.0, 1.4, 1.0], rel=1e-5)
    assert gate.record.spread() == pytest.approx(0.2, rel=1e-4)


def test_the_mean_is_over_tokens_of_ratios_not_a_ratio_of_means() -> None:
    gate = MagCalibration()
    state = gate.init(1)
    norms = [torch.tensor([[[1.0], [10.0]]]), torch.tensor([[[3.0], [10.0]]])]
    for index, feature in enumerate(norms):
        gate.observe(state, Seen(Step(index, 2), [0], None, feature, feature))
    assert gate.record.ratios().ratios == (1.0, 2.0)


def test_tokens_without_magnitude_are_left_out() -> None:
    gate = MagCalibration()
    state = gate.init(1)
    for index, first in enumerate([0.0, 5.0]):
        feature = torch.tensor([[[first], [1.0 + index]]])
        gate.observe(state, Seen(Step(index, 2), [0], None, feature, feature))
    assert gate.record.ratios().ratios == (1.0, 2.0)


def test_norms_of_half_precision_features_do_not_overflow() -> None:
    feature = torch.full((1, 3, 400), 6e4, dtype=torch.float16)
    assert token_norms(feature).tolist() == [[pytest.approx(6e4 * 20, rel=1e-3)] * 3]


def test_what_a_record_cannot_hold_or_give_is_said() -> None:
    record = MagnitudeRecord()
    with pytest.raises(ValueError, match="the record is empty"):
        record.ratios()
    record.add(Step(1, 4), [1.0])
    with pytest.raises(ValueError, match=r"lacks steps \[2, 3\]"):
        record.ratios()
    with pytest.raises(ValueError, match="runs of 4 steps and was given one of 5"):
        record.add(Step(1, 5), [1.0])
    gate, x = MagCalibration(), torch.zeros(1, 2)
    with pytest.raises(ValueError, match="no feature"):
        gate.observe(gate.init(1), Seen(Step(0, 2), [0], None, x))
    with pytest.raises(ValueError, match="needs them all"):
        gate.observe(gate.init(2), Seen(Step(0, 2), [1], None, x, x))
