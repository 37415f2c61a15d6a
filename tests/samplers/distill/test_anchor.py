"""Anchored guidance: paths between the guided and the unguided one."""

import pytest
import torch

from skipstep.samplers.distill.anchor import anchored_path
from skipstep.samplers.distill.flow import Guided
from skipstep.samplers.distill.paths import teacher_path
from skipstep.samplers.distill.plane import ring
from skipstep.samplers.distill.plane_prompts import EMPTY, TOKENS
from skipstep.samplers.distill.walk import shifted_nodes


def test_updates_bring_the_guided_path_to_its_anchor() -> None:
    noise = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    condition = {"encoder_hidden_states": TOKENS[torch.arange(16) % 8]}
    times, flow = shifted_nodes(5), ring()
    anchor = teacher_path(flow, noise, times, condition)
    guided = teacher_path(Guided(flow, 4.0, EMPTY), noise, times, condition)
    paths = [
        anchored_path(flow, noise, times, condition, EMPTY, scale=4.0, updates=n, rate=0.3)
        for n in (0, 3, 20)
    ]
    torch.testing.assert_close(paths[0], guided)
    away = [float((path - anchor).square().mean()) for path in paths]
    assert away[1] < 0.8 * away[0] and away[2] < 0.2 * away[0]
    assert not paths[2].requires_grad


def test_a_teacher_without_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a teacher with an empty prompt"):
        anchored_path(ring(), torch.zeros(1, 2), (1.0, 0.0), {}, {}, scale=3.0, updates=1)
