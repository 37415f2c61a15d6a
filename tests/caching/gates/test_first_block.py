"""First-block gate: the distance is to the last computed step of the same row."""

import torch

from skipstep.caching.base import Seen, Step
from skipstep.caching.gates.first_block import FirstBlockGate

torch.set_num_threads(1)


def test_distance_is_to_the_last_computed_step_so_slow_drift_is_noticed() -> None:
    gate = FirstBlockGate(threshold=0.25)
    state = gate.init(1)
    computed, values = [], []
    for index in range(8):
        p = torch.full((1, 4), 1 + 0.1 * index)
        (choice,) = gate.decide(state, Step(index, 8), p)
        values.append(choice.value)
        if choice.compute:
            computed.append(index)
            gate.observe(state, Seen(Step(index, 8), [0], p, p))
    # From p = 1.0: .1, .2, .3 of 1; from 1.3: .1/1.3, .2/1.3, .3/1.3 = .231, .4/1.3 = .308.
    assert computed == [0, 3, 7]
    expected = torch.tensor([0.1, 0.2, 0.3, 0.1 / 1.3, 0.2 / 1.3, 0.3 / 1.3, 0.4 / 1.3])
    torch.testing.assert_close(torch.tensor(values[1:]), expected, rtol=1e-5, atol=0)


def test_rows_keep_their_own_references() -> None:
    gate = FirstBlockGate(threshold=0.5)
    state = gate.init(2)
    p = torch.tensor([[1.0], [2.0]])
    gate.decide(state, Step(0, 3), p)
    gate.observe(state, Seen(Step(0, 3), [1], p[1:], p[1:]))
    row0, row1 = gate.decide(state, Step(1, 3), torch.tensor([[1.0], [2.5]]))
    assert (row0.compute, row0.why) == (True, "no history")
    assert row1.value == 0.25 and not row1.compute
