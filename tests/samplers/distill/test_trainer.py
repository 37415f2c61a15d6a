"""Training: runs resume exactly, LoRA shares what is frozen, files hold what was learned."""

from pathlib import Path

import pytest
import torch

from skipstep.samplers.distill.catalog import load_recipe
from skipstep.samplers.distill.networks import copied, difference, trained_parameters
from skipstep.samplers.distill.plane import PlaneNet, PlaneSource, ring
from skipstep.samplers.distill.trainer import Trainer, Training


def trainer(
    folder: Path | None, iterations: int = 12, lora_rank: int = 0, minutes: float | None = None
) -> Trainer:
    torch.manual_seed(0)
    settings = Training(iterations=iterations, batch=16, lora_rank=lora_rank, minutes=minutes)
    recipe = load_recipe("tdm", {"steps": 1})
    return Trainer(recipe, PlaneNet(16, 2), PlaneSource(ring()), settings, folder=folder)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, rank: int) -> None:
    whole = trainer(None, lora_rank=rank)
    whole.run()
    first = trainer(tmp_path, lora_rank=rank)
    for _ in range(7):
        first.step()
    first.save()
    second = trainer(tmp_path, lora_rank=rank)
    second.run()
    assert second.state.iteration == 12
    for a, b in zip(
        whole.modules["average"].parameters(), second.modules["average"].parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_base_is_not_changed_and_the_fake_network_takes_its_turns() -> None:
    run = trainer(None)
    before = [p.clone() for p in run.base.parameters()]
    assert [run.recipe.role_at(i) for i in range(4)] == ["fake", "fake", "fake", "student"]
    run.run()
    assert all(torch.equal(a, b) for a, b in zip(before, run.base.parameters(), strict=True))
    assert run.state.updates == 3


def test_lora_copies_share_the_base_and_train_their_factors_only() -> None:
    base = PlaneNet(16, 2)
    student = copied(base, lora_rank=2)
    own = {id(p) for p in base.parameters()}
    shared = [p for p in student.parameters() if id(p) in own]
    assert len(shared) == len(own)
    names = trained_parameters(student)
    assert len(names) == 2 * 4 and all(".lora_" in name for name in names)
    x, t = torch.randn(3, 2), torch.rand(3)
    torch.testing.assert_close(student(x, t), base(x, t))


@pytest.mark.parametrize("rank", [0, 2])
def test_the_difference_makes_the_student_of_the_base(rank: int) -> None:
    from skipstep.plugins.few_step import products

    base = PlaneNet(16, 2)
    student = copied(base, lora_rank=rank)
    with torch.no_grad():
        for p in trained_parameters(student).values():
            p.add_(0.1 * torch.randn_like(p))
    state = base.state_dict()
    for name, added in products(difference(student, base)).items():
        state[name] = state[name] + added.float()
    rebuilt = PlaneNet(16, 2)
    rebuilt.load_state_dict(state)
    x, t = torch.randn(5, 2), torch.rand(5)
    torch.testing.assert_close(rebuilt(x, t), student(x, t), rtol=2e-3, atol=2e-3)


def test_time_ends_a_run_and_its_decay_with_it() -> None:
    run = trainer(None, iterations=1000, minutes=0.5)
    run.state.seconds = 15.0
    assert run.progress == pytest.approx(0.5)
    run.state.seconds = 40.0
    assert run.progress == 1.0


def test_a_loss_that_is_not_finite_ends_the_run_in_words() -> None:
    run = trainer(None)
    with torch.no_grad():
        next(run.modules["fake"].parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the loss of the fake is nan at iteration 1"):
        run.step()
