"""DiCache's gate: accumulation and gamma by hand, and the forecast it places."""

import pytest
import torch

from skipstep.caching.base import Seen, Step
from skipstep.caching.forecasters.taylor import Taylor
from skipstep.caching.gates.dicache import DiCacheGate
from skipstep.caching.history import History

torch.set_num_threads(1)


def show(gate: DiCacheGate, probes: list[float], computed: tuple[int, ...]) -> list[float | None]:
    """Return the forecast times at each step; the given steps are computed."""
    state, found = gate.init(1), []
    for index, value in enumerate(probes):
        step, rho = Step(index, len(probes)), torch.full((1, 3), value)
        (choice,) = gate.decide(state, step, rho)
        found.append(choice.at)
        if index in computed:
            gate.observe(state, Seen(step, [0], rho, rho))
    return found


def test_the_probe_places_the_forecast_on_the_line_through_the_anchors() -> None:
    # Anchors at steps 1 and 3 with probes 1 and 2: gamma = (rho - 1) / (2 - 1).
    times = show(DiCacheGate(threshold=10), [0.5, 1.0, 1.5, 2.0, 2.2, 2.4, 9.0, 1.5], (0, 1, 3))
    assert times[4:] == pytest.approx([3.4, 3.8, 1 + 1.5 * 2, 3.0], rel=1e-5)


def test_gamma_of_one_repeats_and_an_unmoved_probe_too() -> None:
    assert show(DiCacheGate(threshold=10, gamma_limit=1), [1.0, 2.0, 5.0], (0, 1))[2] == 1.0
    assert show(DiCacheGate(threshold=10), [1.0, 1.0, 5.0], (0, 1))[2] == 1.0
    assert show(DiCacheGate(threshold=10), [1.0, 1.0, 1.0], (0, 1))[2] == 1.0


def test_the_forecast_is_delta_2_plus_gamma_times_their_difference() -> None:
    history = History(2, 2)
    history.push(torch.tensor([[1.0], [10.0]]), [0, 1], 1)
    history.push(torch.tensor([[3.0], [30.0]]), [0, 1], 3)
    found = history.forecast(Taylor(order=1), [0, 1], [1 + 1.25 * 2, 1 + 1.0 * 2])
    torch.testing.assert_close(found, torch.tensor([[1 + 1.25 * 2], [30.0]]))


def test_changes_accumulate_and_a_computed_step_starts_anew() -> None:
    gate = DiCacheGate(threshold=0.25)
    state, computed = gate.init(1), []
    for index in range(8):
        rho = torch.full((1, 3), 1.1**index)
        (choice,) = gate.decide(state, Step(index, 8), rho)
        if choice.compute:
            computed.append(index)
            gate.observe(state, Seen(Step(index, 8), [0], rho, rho))
    assert computed == [0, 3, 6]
