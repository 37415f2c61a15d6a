"""What every adaptive gate must do, played on random walks: thresholds, samples, bad numbers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from skipstep.caching.base import Choice, Gate, Seen, Step
from skipstep.caching.gates.dicache import DiCacheGate
from skipstep.caching.gates.easycache import EasyCacheGate
from skipstep.caching.gates.first_block import FirstBlockGate
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.gates.magcache import MagCacheGate, MagnitudeRatios
from skipstep.caching.gates.schedule import Schedule, ScheduleGate
from skipstep.caching.gates.seacache import SeaCacheGate
from skipstep.caching.gates.teacache import TeaCacheGate

torch.set_num_threads(1)

LEARNS = [FirstBlockGate(threshold=0.3), EasyCacheGate(threshold=0.3), DiCacheGate(threshold=0.3)]
ADAPTIVE = [*LEARNS, TeaCacheGate(threshold=0.3), SeaCacheGate(threshold=0.3)]
NOISE = (1.0, 0.0)
RATIOS = MagnitudeRatios(ratios=(1.0, *[1 + 0.05 * (i % 4) for i in range(1, 24)]))
EVERY = [
    *ADAPTIVE,
    IntervalGate(interval=3),
    MagCacheGate(ratios=RATIOS, threshold=0.2),
    ScheduleGate(schedule=Schedule(steps=24, compute=(0, 1, 5, 6, 13, 20))),
]
WARMUP = 2


def play(gate: Gate[Any], signals: Tensor, outputs: Tensor) -> list[list[Choice]]:
    """Run a gate as the engine does on [steps, b, ...] tensors; warm-up steps are forced."""
    count, rows = signals.shape[:2]
    state = gate.init(rows)
    played = []
    for index in range(count):
        step = Step(index, count, NOISE)
        signal = None if gate.looks_at == "step" else signals[index].clone()
        choices = gate.decide(state, step, signal)
        assert len(choices) == rows
        computed = [r for r in range(rows) if index < WARMUP or choices[r].compute]
        if computed:
            shown = None if signal is None else signal[computed]
            gate.observe(state, Seen(step, computed, shown, outputs[index][computed]))
        if signal is not None:
            signal.fill_(torch.nan)  # models that write into their input must not matter
        played.append(choices)
    return played


def computed(played: list[list[Choice]]) -> Tensor:
    return torch.tensor([[c.compute for c in choices] for choices in played])


def walk(seed: int, rows: int = 4, steps: int = 24) -> tuple[Tensor, Tensor]:
    """Return random walks of input and output whose rows move at different speeds."""
    generator = torch.Generator().manual_seed(seed)
    speed = torch.tensor([0.05, 0.1, 0.3, 0.6])[:rows].reshape(1, rows, 1)
    noise = torch.randn(2, steps, rows, 63, generator=generator)
    x = torch.randn(1, rows, 63, generator=generator) + (speed * noise[0]).cumsum(0)
    return x, torch.tanh(x) + 0.05 * noise[1]


@pytest.mark.parametrize("gate", ADAPTIVE, ids=lambda g: g.type)
def test_threshold_zero_never_skips_even_when_nothing_moves(gate: Gate[Any]) -> None:
    still = torch.ones(10, 2, 5)
    never = replace(gate, threshold=0)  # type: ignore[type-var]
    assert computed(play(never, still, still)).all()
    x, v = walk(0)
    assert computed(play(never, x, v)).all()


@pytest.mark.parametrize("gate", ADAPTIVE, ids=lambda g: g.type)
def test_walks_both_skip_and_compute_so_that_these_tests_can_fail(gate: Gate[Any]) -> None:
    choices = computed(play(gate, *walk(1)))[WARMUP:]
    assert choices.any() and not choices.all()
    assert len({tuple(column) for column in choices.T.tolist()}) > 1


@pytest.mark.parametrize("gate", ADAPTIVE, ids=lambda g: g.type)
def test_one_decision_is_monotone_in_the_threshold(gate: Gate[Any]) -> None:
    x, v = walk(2)
    for cut in range(3, 20):
        skipped_before = torch.zeros(4, dtype=torch.bool)
        for threshold in (0.0, 0.01, 0.1, 0.5, 2.0, 10.0):
            candidate = replace(gate, threshold=threshold)  # type: ignore[type-var]
            state = candidate.init(4)
            for index in range(cut):
                candidate.decide(state, Step(index, 24, NOISE), x[index])
                if index < 3:
                    candidate.observe(
                        state, Seen(Step(index, 24), [0, 1, 2, 3], x[index], v[index])
                    )
            last = candidate.decide(state, Step(cut, 24, NOISE), x[cut])
            skipped = torch.tensor([not c.compute for c in last])
            assert (skipped | ~skipped_before).all()
            skipped_before = skipped
        assert skipped_before.all()


@pytest.mark.parametrize("gate", ADAPTIVE, ids=lambda g: g.type)
def test_on_a_straight_path_a_larger_threshold_never_computes_more(gate: Gate[Any]) -> None:
    path = torch.linspace(1, 3, 40).reshape(40, 1, 1) * torch.ones(1, 1, 7)
    counts = [
        int(computed(play(replace(gate, threshold=t), path, path)).sum())  # type: ignore[type-var]
        for t in (0.0, 0.06, 0.11, 0.23, 0.47, 0.9, 10.0)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 40 and counts[-1] <= 3


@pytest.mark.parametrize("gate", EVERY, ids=lambda g: g.type)
@pytest.mark.parametrize("seed", range(8))
def test_a_row_decides_in_a_batch_as_it_does_alone(gate: Gate[Any], seed: int) -> None:
    x, v = walk(seed)
    together = computed(play(gate, x, v))
    for row in range(4):
        alone = computed(play(gate, x[:, row : row + 1], v[:, row : row + 1]))
        assert torch.equal(together[:, row], alone[:, 0])


@pytest.mark.parametrize("gate", EVERY, ids=lambda g: g.type)
def test_reordering_the_batch_reorders_the_choices(gate: Gate[Any]) -> None:
    x, v = walk(9)
    order = [2, 0, 3, 1]
    plain, shuffled = computed(play(gate, x, v)), computed(play(gate, x[:, order], v[:, order]))
    assert torch.equal(plain[:, order], shuffled)


@pytest.mark.parametrize("gate", ADAPTIVE, ids=lambda g: g.type)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_number_computes_its_own_row_and_says_so(gate: Gate[Any], bad: float) -> None:
    x, v = walk(3)
    clean = computed(play(gate, x, v))
    x = x.clone()
    x[8:, 1] = bad
    played = play(gate, x, v)
    assert {(c[1].compute, c[1].why) for c in played[9:]} == {(True, "not finite")}
    others = [0, 2, 3]
    assert torch.equal(computed(played)[:, others], clean[:, others])


@pytest.mark.parametrize("gate", ADAPTIVE, ids=lambda g: g.type)
def test_every_comparison_reports_its_two_numbers(gate: Gate[Any]) -> None:
    for choices in play(gate, *walk(4))[WARMUP:]:
        for c in choices:
            assert c.threshold == 0.3 and c.value is not None
            assert c.compute == (not c.value < c.threshold)
            assert c.why == ("changed" if c.compute else "small change")


@pytest.mark.parametrize("gate", ADAPTIVE, ids=lambda g: g.type)
def test_before_there_is_history_a_row_computes(gate: Gate[Any]) -> None:
    first = gate.decide(gate.init(2), Step(0, 5, NOISE), torch.ones(2, 3))
    assert [(c.compute, c.why) for c in first] == [(True, "no history")] * 2


@pytest.mark.parametrize("gate", ADAPTIVE, ids=lambda g: g.type)
def test_half_precision_signals_decide_like_full_precision(gate: Gate[Any]) -> None:
    x, v = (t.bfloat16() for t in walk(5))
    assert torch.equal(computed(play(gate, x, v)), computed(play(gate, x.float(), v.float())))


@pytest.mark.parametrize("gate", ADAPTIVE, ids=lambda g: g.type)
def test_a_missing_signal_is_an_error(gate: Gate[Any]) -> None:
    with pytest.raises(ValueError, match="was given no signal"):
        gate.decide(gate.init(1), Step(0, 5), None)


@pytest.mark.parametrize("gate", LEARNS, ids=lambda g: g.type)
def test_what_is_learned_from_a_missing_signal_is_an_error(gate: Gate[Any]) -> None:
    with pytest.raises(ValueError, match="was shown no signal"):
        gate.observe(gate.init(1), Seen(Step(0, 5), [0], None, torch.ones(1, 3)))


@pytest.mark.parametrize("threshold", [-1, 11, float("nan"), float("inf"), "high"])
@pytest.mark.parametrize("gate", ADAPTIVE, ids=lambda g: g.type)
def test_impossible_thresholds_are_refused(gate: Gate[Any], threshold: Any) -> None:
    with pytest.raises(ValueError, match="threshold"):
        type(gate)(threshold=threshold)  # type: ignore[call-arg]
