"""Motion and flicker of clips: still, moving and flickering ones are told apart."""

import pytest
import torch

from skipstep.pipelines.metrics.motion import frame_consistency, motion


def test_motion_is_the_mean_step_in_units_of_255() -> None:
    ramp = torch.linspace(-1, 1, 5)[None, :, None, None, None].expand(2, 5, 3, 8, 8)
    assert motion(ramp).tolist() == pytest.approx([63.75, 63.75])


def test_a_still_clip_is_consistent_and_a_flickering_one_less_than_a_moving_one() -> None:
    generator = torch.Generator().manual_seed(0)
    frame = torch.rand(3, 64, 64, generator=generator) * 2 - 1
    still = frame.expand(4, 3, 64, 64)
    moving = torch.stack([frame.roll(step, -1) for step in range(4)])
    flickering = torch.rand(4, 3, 64, 64, generator=generator) * 2 - 1
    flickering[::2] = -1
    found = frame_consistency(torch.stack([still, moving, flickering])).tolist()
    assert found[0] == pytest.approx(1, abs=1e-5)
    assert found[0] > found[1] > found[2]
