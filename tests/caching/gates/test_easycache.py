"""EasyCache's gate: equality with a plain loop over scalars, and what resets E."""

import pytest
import torch

from skipstep.caching.base import Seen, Step
from skipstep.caching.gates.easycache import EasyCacheGate

torch.set_num_threads(1)


def mean_change(a: list[float], b: list[float]) -> float:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a)


@pytest.mark.parametrize("threshold", [0.2, 0.4, 0.7])
def test_equals_a_loop_over_python_numbers(threshold: float) -> None:
    generator = torch.Generator().manual_seed(7)
    steps, warmup = 30, 3
    xs = (torch.randn(steps, 1, 11, generator=generator) * 0.2).cumsum(0) + 1
    vs = xs.sin() + 0.1 * torch.randn(steps, 1, 11, generator=generator)

    gate = EasyCacheGate(threshold=threshold)
    state = gate.init(1)
    anchors: list[int] = []
    error, rate = 0.0, 0.0
    skipped = 0
    for i in range(steps):
        x, v = xs[i, 0].tolist(), vs[i, 0].tolist()
        (choice,) = gate.decide(state, Step(i, steps), xs[i])
        if len(anchors) >= 2:
            scale = mean_change(vs[anchors[-1], 0].tolist(), [0.0] * 11)
            error += rate * mean_change(x, xs[i - 1, 0].tolist()) / scale
            assert choice.value == pytest.approx(error, rel=1e-4)
            assert choice.compute == (error >= threshold)
        else:
            assert choice.why == "no history"
        if i < warmup or choice.compute:
            if anchors:
                rate = mean_change(v, vs[anchors[-1], 0].tolist())
                rate /= mean_change(x, xs[anchors[-1], 0].tolist())
            anchors.append(i)
            error = 0.0
            gate.observe(state, Seen(Step(i, steps), [0], xs[i], vs[i]))
        else:
            skipped += 1
    assert 0 < skipped < steps - warmup


def test_step_to_step_changes_add_up_when_the_input_turns_back() -> None:
    gate = EasyCacheGate(threshold=10)
    state = gate.init(1)
    values = []
    for i, x in enumerate([1.0, 2.0, 1.0, 2.0, 1.0]):
        tensor = torch.full((1, 3), x)
        (choice,) = gate.decide(state, Step(i, 5), tensor)
        values.append(choice.value)
        if i < 2:
            gate.observe(state, Seen(Step(i, 5), [0], tensor, tensor))
    # k = 1 and mean|v_a1| = 2: every turn adds 1/2.
    assert values[2:] == [0.5, 1.0, 1.5]


def test_latents_updated_in_place_do_not_hide_their_change() -> None:
    gate = EasyCacheGate(threshold=0.4)
    state = gate.init(1)
    x = torch.ones(1, 3)
    choices = []
    for i in range(4):
        choices += gate.decide(state, Step(i, 4), x)
        if i < 2:
            gate.observe(state, Seen(Step(i, 4), [0], x, x))
        x += 1
    assert [c.compute for c in choices] == [True, True, True, True]
    assert choices[2].value == 0.5


def test_an_input_that_stood_still_between_anchors_gives_no_rate_and_computes() -> None:
    gate = EasyCacheGate(threshold=1)
    state = gate.init(1)
    for i in range(3):
        (choice,) = gate.decide(state, Step(i, 3), torch.ones(1, 3))
        gate.observe(state, Seen(Step(i, 3), [0], torch.ones(1, 3), torch.full((1, 3), 1.0 + i)))
    assert (choice.compute, choice.why) == (True, "not finite")
