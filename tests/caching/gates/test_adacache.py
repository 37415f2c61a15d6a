"""AdaCache's gate: intervals from the measured rate, by hand."""

import pytest
import torch

from skipstep.caching.base import Seen, Step
from skipstep.caching.gates.adacache import AdaCacheGate

torch.set_num_threads(1)


def play(gate: AdaCacheGate, features: torch.Tensor) -> list[list[int]]:
    """Return the computed steps of every row of [steps, b, ...] features."""
    count, rows = features.shape[:2]
    state = gate.init(rows)
    found: list[list[int]] = [[] for _ in range(rows)]
    for index in range(count):
        step = Step(index, count)
        computed = [r for r, c in enumerate(gate.decide(state, step, None)) if c.compute]
        for row in computed:
            found[row].append(index)
        if computed:
            feature = features[index][computed]
            gate.observe(state, Seen(step, computed, None, feature, feature))
    return found


def growth(rate: float, steps: int = 16) -> torch.Tensor:
    """Return [steps, 1, 3] features that grow by `rate` of their size each step."""
    return torch.stack([torch.full((1, 3), (1 + rate) ** i) for i in range(steps)])


def test_steps_follow_the_codebook() -> None:
    gate = AdaCacheGate(codebook=((0.05, 4), (0.15, 2)))
    # .01 a step: 4 from step 1 on; 1.01^4 - 1 = .0406, over 4 steps still below .05.
    assert play(gate, growth(0.01)) == [[0, 1, 5, 9, 13]]
    # .1 a step: 2, and (1.1^2 - 1) / 2 = .105 stays in that entry.
    assert play(gate, growth(0.1)) == [[0, 1, 3, 5, 7, 9, 11, 13, 15]]
    assert play(gate, growth(0.5)) == [list(range(16))]


def test_rows_in_a_batch_decide_as_alone() -> None:
    gate = AdaCacheGate(codebook=((0.05, 4), (0.15, 2)))
    rates = (0.01, 0.1, 0.5)
    batch = torch.cat([growth(rate) for rate in rates], dim=1)
    assert play(gate, batch) == [play(gate, growth(rate))[0] for rate in rates]


def test_what_is_not_finite_computes_its_own_row() -> None:
    gate = AdaCacheGate()
    features = torch.cat([growth(0.01), growth(0.01)], dim=1)
    features[3:, 1] = torch.nan
    clean, bad = play(gate, features)
    assert clean == play(gate, growth(0.01))[0]
    assert bad[-8:] == list(range(8, 16))


def test_larger_limits_never_compute_more() -> None:
    counts = [
        len(play(AdaCacheGate(codebook=((limit, 3),)), growth(0.1))[0])
        for limit in (0.01, 0.05, 0.2, 1.0)
    ]
    assert counts == sorted(counts, reverse=True) and counts[0] == 16 and counts[-1] < 8


def test_a_forced_step_counts_as_the_last_computed_one() -> None:
    gate = AdaCacheGate(codebook=((1.0, 4),))
    state, x = gate.init(1), torch.ones(1, 3)
    for index in (0, 1, 2):
        gate.observe(state, Seen(Step(index, 9), [0], None, x, x))
    due = [i for i in range(3, 9) if gate.decide(state, Step(i, 9), None)[0].compute]
    assert due == [6, 7, 8]


def test_faulty_codebooks_and_a_missing_feature_are_refused() -> None:
    for codebook in (((0.2, 2), (0.1, 1)), ((0.1, 1), (0.2, 3))):
        with pytest.raises(ValueError, match="limits must ascend and intervals must not grow"):
            AdaCacheGate(codebook=codebook)
    with pytest.raises(ValueError, match="adacache was shown no feature"):
        gate = AdaCacheGate()
        gate.observe(gate.init(1), Seen(Step(0, 2), [0], None, torch.ones(1, 2)))
