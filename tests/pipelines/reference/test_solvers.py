"""The shipped solvers of the reference model: nearer to its own solution at the same steps."""

from typing import Any

import pytest
import torch
from torch import Tensor

from skipstep.pipelines.reference.load import load_reference
from skipstep.pipelines.reference.solvers import STEPS, calibrated_solver
from skipstep.samplers.solvers.solver import Solver

PROMPTS = ["a red apple, 3d style", "cat face, noto style", "ghost, flat style"]


def latents(pipe: Any, steps: int) -> Tensor:
    made: Tensor = pipe(
        PROMPTS,
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(70 + i) for i in range(len(PROMPTS))],
        output_type="latent",
    ).images
    return made


@pytest.fixture(scope="module")
def pipe() -> Any:
    loaded = load_reference()
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def truth(pipe: Any) -> Tensor:
    with pipe.plugins(Solver(preset="exact2")):
        return latents(pipe, 40)


@pytest.mark.parametrize("steps", STEPS)
def test_the_shipped_solver_is_nearer_than_the_pipelines_own(
    pipe: Any, truth: Tensor, steps: int
) -> None:
    own = (latents(pipe, steps) - truth).flatten(1).norm(dim=1)
    with pipe.plugins(calibrated_solver(steps)):
        ours = (latents(pipe, steps) - truth).flatten(1).norm(dim=1)
    assert ours.mean() < own.mean()


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("steps", STEPS)
def test_a_shipped_file_is_under_a_hundred_numbers_and_says_what_it_gained(
    steps: int, wide: bool
) -> None:
    file = calibrated_solver(steps, wide=wide).solver
    served = (1.0, 7.0) if wide else (1.5, 5.25)
    assert file.guidance_range == served
    assert not any(file.serves(scale) for scale in (served[0] - 0.1, served[1] + 0.1))
    assert file.steps == steps and file.numbers < 100
    assert file.measured.calibrated < file.measured.fallback
    assert file.fingerprint["pipeline"] == "ReferencePipeline"


def test_other_numbers_of_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="has calibrated solvers for"):
        calibrated_solver(6)
