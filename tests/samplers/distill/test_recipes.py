"""Recipes on the plane: each student beats its exact teacher's Euler steps by a known margin."""

import pytest
import torch
from torch import nn

from skipstep.samplers.distill import plane_clips, plane_prompts
from skipstep.samplers.distill.blockwise import Blockwise
from skipstep.samplers.distill.catalog import RECIPES, load_recipe
from skipstep.samplers.distill.flow import PlainBridge
from skipstep.samplers.distill.networks import Flow
from skipstep.samplers.distill.plane import (
    Mixture,
    PlaneNet,
    PlaneSource,
    ring,
    sliced_wasserstein,
    teacher_distance,
)
from skipstep.samplers.distill.plane_suite import CASES, Case, learned_flow, prove
from skipstep.samplers.distill.protocol import Batch, Moment
from skipstep.samplers.distill.recipes.caf import CAF, walk_with_acceleration
from skipstep.samplers.distill.recipes.consistency import Segmented
from skipstep.samplers.distill.recipes.rayflow import unified_expectation
from skipstep.samplers.distill.recipes.residual import Residual, conflict_free
from skipstep.samplers.distill.recipes.trajectory import Trajectory
from skipstep.samplers.distill.trainer import Trainer, Training

PROVEN_ELSEWHERE = {"guidance", "caf", "residual"}


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return ring()


@pytest.fixture(scope="module")
def start(mixture: Mixture) -> nn.Module:
    torch.set_num_threads(1)
    return learned_flow(mixture)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_student_beats_its_teacher_by_half_the_measured_gain(
    case: Case, mixture: Mixture, start: nn.Module
) -> None:
    proof = prove(case, mixture, start)
    assert proof.gain > max(case.gain / 2, 1.0), f"{proof.student:.3f} to {proof.teacher:.3f}"


@pytest.fixture(scope="module")
def prompt_start() -> nn.Module:
    return plane_prompts.learned_prompts()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[] if case.recipe == "speedup" else pytest.mark.slow)
        for case in plane_prompts.CASES
    ],
)
def test_a_student_of_prompts_beats_its_guided_teacher(case: Case, prompt_start: nn.Module) -> None:
    proof = plane_prompts.prove(case, prompt_start)
    assert proof.gain > max(case.gain / 2, 1.0), f"{proof.student:.3f} to {proof.teacher:.3f}"


@pytest.mark.slow
@pytest.mark.parametrize("case", plane_clips.CASES, ids=lambda case: case.name)
def test_a_causal_student_beats_the_teacher_of_whole_clips(case: Case) -> None:
    proof = plane_clips.prove(case, plane_clips.learned_clips())
    assert proof.gain > max(case.gain / 2, 1.0), f"{proof.student:.3f} to {proof.teacher:.3f}"


def test_every_recipe_is_proven() -> None:
    cases = (*CASES, *plane_prompts.CASES, *plane_clips.CASES)
    assert {case.recipe for case in cases} | PROVEN_ELSEWHERE == set(RECIPES)


def test_guidance_is_learned_so_that_its_student_walks_as_the_teacher_does(
    mixture: Mixture, start: nn.Module
) -> None:
    """The start of all students is a guidance student, of a teacher without any guidance."""
    generator = torch.Generator().manual_seed(5)
    noise, data = torch.randn(4096, 2, generator=generator), mixture.sample(4096, generator)
    walked = load_recipe("guidance").sample(Flow(start, PlainBridge()), noise, 8, {})
    assert sliced_wasserstein(walked, data) < 1.5 * teacher_distance(mixture, 8)


def test_constant_acceleration_beats_its_teacher_in_one_step(mixture: Mixture) -> None:
    torch.manual_seed(0)
    settings = Training(iterations=600, batch=256, rate=3e-3, fake_rate=3e-3, average=0.98)
    trainer = Trainer(CAF(), PlaneNet(more=2), PlaneSource(mixture, (1.0, 0.0)), settings)
    student = trainer.run()
    generator = torch.Generator().manual_seed(7)
    noise, data = torch.randn(4096, 2, generator=generator), mixture.sample(4096, generator)
    bridge = PlainBridge()
    flows = Flow(trainer.modules["velocity"], bridge), Flow(student, bridge)
    made = walk_with_acceleration(*flows, noise, 1, {})
    assert sliced_wasserstein(made, data) < teacher_distance(mixture, 1) / 4


def test_a_true_acceleration_arrives_in_one_step() -> None:
    noise, data, v_0 = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    made = walk_with_acceleration(
        lambda x, t, condition, s=None: v_0,
        lambda x, t, condition, s=None: 2 * (data - noise) - 2 * v_0,
        noise,
        1,
        {},
    )
    torch.testing.assert_close(made, data)


def off_the_circle(x: torch.Tensor) -> torch.Tensor:
    off: torch.Tensor = x.norm(dim=1, keepdim=True) - 2**0.5
    return off


def test_samples_of_a_residual_student_satisfy_the_equation_better(
    mixture: Mixture, start: nn.Module
) -> None:
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(2048, 2, generator=generator)
    settings = Training(iterations=150, batch=256, rate=1e-3, average=0.95)
    recipe = Residual(residual=off_the_circle, unroll=3)
    student = Trainer(recipe, start, PlaneSource(mixture), settings).run()
    before, after = (
        off_the_circle(recipe.sample(Flow(net, PlainBridge()), noise, 8, {})).abs().mean()
        for net in (start, student)
    )
    assert after < 0.8 * before


def test_joined_gradients_have_equal_cosine_and_oppose_neither() -> None:
    a, b = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    b = b - 0.9 * a
    joined = conflict_free(a, b)
    cosines = [torch.cosine_similarity(joined, each, dim=0) for each in (a, b)]
    torch.testing.assert_close(cosines[0], cosines[1])
    assert cosines[0] > 0


def test_the_unified_expectation_of_a_straight_path_is_its_noise() -> None:
    noise, data = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0))
    times = (1.0, 0.6, 0.0)
    path = torch.stack([t * noise + (1 - t) * data for t in times], 1)
    torch.testing.assert_close(unified_expectation(path, times), noise)


def test_a_student_that_follows_the_path_has_no_trajectory_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    path = torch.randn(64, 3, 2, generator=generator)
    batch = Batch(noise=path[:, 0], path=path, times=(1.0, 0.5, 0.0), condition={})
    ends = {1.0: path[:, 1], 0.5: path[:, 2]}

    def right(
        x: torch.Tensor, t: torch.Tensor, condition: object, s: object = None
    ) -> torch.Tensor:
        aim = torch.stack([ends[float(each)][row] for row, each in enumerate(t)])
        v: torch.Tensor = (x - aim) / 0.5
        return v

    now = Moment({"student": right, "average": right}, batch, generator, 0.0)
    for share in (0.0, 1.0):
        recipe = Trajectory(at=(1.0, 0.5, 0.0), on_student_states=share)
        assert float(recipe.loss("student", now)) < 1e-10


def test_segments_merge_while_training() -> None:
    merging = Segmented(segments=2, merging=True)
    assert [merging.segments_at(p) for p in (0.0, 0.4, 0.9, 1.0)] == [8, 4, 2, 2]
    assert Segmented(segments=2).segments_at(0.0) == 2


def test_a_blockwise_network_answers_by_the_stretch_of_each_samples_time() -> None:
    net = Blockwise(PlaneNet(width=8, depth=1), (1.0, 0.6, 0.2, 0.0))
    for k, part in enumerate(net.parts):
        assert isinstance(part, PlaneNet)
        torch.nn.init.zeros_(part.leave.weight)
        torch.nn.init.constant_(part.leave.bias, k)
    times = torch.tensor([1.0, 0.61, 0.6, 0.21, 0.2, 0.01])
    found = net(torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), times)
    assert found[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="times fall from 1 to 0"):
        Blockwise(PlaneNet(), (0.0, 1.0))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("reflo", {}, "unknown recipe 'reflo', did you mean 'reflow'?"),
        ("reflow", {"time": "uniform"}, "recipe reflow: time: Unexpected keyword argument"),
        ("trajectory", {"at": [1.0, 1.0, 0.0]}, "times fall from 1 to 0"),
        ("backward", {"t_min": 0.9, "t_max": 0.2}, "t_min=0.9 is not below t_max=0.2"),
    ],
)
def test_mistakes_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        load_recipe(name, options)


def test_a_student_refuses_a_number_of_steps_it_was_not_taught() -> None:
    noise = torch.zeros(1, 2)
    for recipe in (load_recipe("tdm"), load_recipe("segmented"), load_recipe("trajectory")):
        with pytest.raises(ValueError, match="steps=3: this student takes 4 steps"):
            recipe.sample(lambda x, t, condition, s=None: x, noise, 3, {})
