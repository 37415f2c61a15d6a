"""The training code: schedules end in time, runs resume exactly, losses are what they say."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from skipstep.pipelines.reference.autoencoder import new_autoencoder, to_tensor
from skipstep.pipelines.reference.budget import WallBudget
from skipstep.pipelines.reference.captions import STYLES, TAUGHT, held_out_style
from skipstep.pipelines.reference.data import Pictures
from skipstep.pipelines.reference.examples import Examples, caption_forms
from skipstep.pipelines.reference.muon import Muon, orthogonalise
from skipstep.pipelines.reference.palette import COLOURS
from skipstep.pipelines.reference.processes import process_count, rank
from skipstep.pipelines.reference.recipe import RECIPES, Recipe, load_recipe
from skipstep.pipelines.reference.threads import CoreFollower
from skipstep.pipelines.reference.train import Trainer
from skipstep.pipelines.reference.vendor_features import rename


@pytest.fixture
def examples() -> Examples:
    torch.manual_seed(0)
    return Examples(
        latents=torch.randn(3, 12, 2, 16, 16, 16).half(),
        flippable=torch.tensor([1, 1, 0]),
        captions=torch.ones(3, 12, 3, dtype=torch.long),
        text=torch.stack([torch.zeros(16, 384), torch.ones(16, 384)]).bfloat16(),
        mask=torch.ones(2, 16, dtype=torch.long),
        pooled=torch.zeros(2, 384).bfloat16(),
    )


def small_recipe(batch: int = 4) -> Recipe:
    """Return the default model's recipe with one block and small batches."""
    recipe = load_recipe(RECIPES / "picture.yaml")
    return dataclasses.replace(
        recipe,
        denoiser={**recipe.denoiser, "num_layers": 1},
        training=dataclasses.replace(recipe.training, batch=batch),
    )


def new_trainer() -> Trainer:
    return Trainer(small_recipe(), Accelerator(cpu=True, mixed_precision="no"))


def test_learning_rate_falls_from_peak_to_floor_over_the_seconds_not_the_steps() -> None:
    start = WallBudget(100.0)
    end = WallBudget(100.0, spent=100.0)
    half = WallBudget(100.0, spent=50.0)
    assert start.cosine(1000, warmup_steps=10, floor=0.01) == pytest.approx(1.0, abs=1e-3)
    assert half.cosine(1000, warmup_steps=10, floor=0.01) == pytest.approx(0.505, abs=1e-2)
    assert end.cosine(1000, warmup_steps=10, floor=0.01) == pytest.approx(0.01, abs=1e-9)
    assert start.cosine(4, warmup_steps=10, floor=0.01) == pytest.approx(0.5, abs=1e-3)
    assert end.is_over and not half.is_over


def test_a_restored_run_takes_the_same_next_step(examples: Examples, tmp_path: Path) -> None:
    first = new_trainer()
    first.step(examples, torch.Generator().manual_seed(0), 1.0)
    first.save(tmp_path / "run.pt", 12.5)
    second = new_trainer()
    assert second.restore(tmp_path / "run.pt") == 12.5
    for trainer in (first, second):
        trainer.step(examples, torch.Generator().manual_seed(1), 0.5)
    assert (second.steps, second.views) == (2, 8)
    ours, theirs = first.parameters + first.averages, second.parameters + second.averages
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_run_goes_on_only_with_the_denoiser_that_began_it(tmp_path: Path) -> None:
    new_trainer().save(tmp_path / "run.pt", 0.0)
    other = dataclasses.replace(
        small_recipe(), denoiser={**small_recipe().denoiser, "num_layers": 2}
    )
    trainer = Trainer(other, Accelerator(cpu=True, mixed_precision="no"))
    with pytest.raises(ValueError, match="begun with another denoiser .* count its version up"):
        trainer.restore(tmp_path / "run.pt")


def test_released_weights_begin_a_run(tmp_path: Path) -> None:
    released = {name: value + 1 for name, value in new_trainer().averaged().items()}
    save_file(released, tmp_path / "released.safetensors")
    trainer = new_trainer()
    trainer.start_from(tmp_path / "released.safetensors")
    for name, value in trainer.averaged().items():
        torch.testing.assert_close(value, released[name], rtol=0, atol=0)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.half(), released[name], rtol=0, atol=0)


def test_kernels_are_trained_as_the_matrices_they_flatten_to() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3)
    kernel, matrix = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.flatten(1).clone())
    kernel.grad, matrix.grad = gradient, gradient.flatten(1)
    Muon([kernel], lr=0.01).step()
    Muon([matrix], lr=0.01).step()
    torch.testing.assert_close(kernel.flatten(1), matrix)


def test_orthogonalised_matrices_have_singular_values_about_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 24, 96), (2, 96, 24)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.6 and values.max() < 1.25
        assert orthogonalise(torch.randn(shape)).shape == shape


def test_muon_takes_the_steps_of_torchs_up_to_its_bfloat16() -> None:
    torch.manual_seed(0)
    start = torch.randn(24, 96)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizers = (
        Muon([ours], lr=0.01, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        gradient = torch.randn(24, 96)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - start).norm()
    assert moved > 0.1
    assert (ours - theirs).norm() < 0.03 * moved


def test_batches_drop_a_tenth_of_the_captions_and_never_mirror_what_must_not_be(
    examples: Examples,
) -> None:
    examples.latents[:, :, 0], examples.latents[:, :, 1] = 0, 1
    examples.latents[2, :, 1] = 5
    batch = examples.draw(4000, torch.Generator().manual_seed(0))
    assert (batch.text[:, 0, 0] == 0).float().mean() == pytest.approx(0.1, abs=0.02)
    assert batch.latents.max() == 1
    assert batch.latents.mean() == pytest.approx(1 / 3, abs=0.03)


def test_pictures_on_a_colour_keep_their_opaque_pixels() -> None:
    pixels = np.zeros((1, 4, 4, 4), np.uint8)
    pixels[0, 1, 1] = (200, 100, 50, 255)
    picture = Pictures(["dot"], pixels).composite(0, COLOURS["blue"])
    np.testing.assert_array_equal(picture[1, 1], (200, 100, 50))
    np.testing.assert_array_equal(picture[0, 0], COLOURS["blue"])


def test_autoencoder_divides_by_eight_and_starts_grey() -> None:
    model = new_autoencoder()
    x = to_tensor(np.zeros((1, 64, 64, 3), np.float32))
    z: Tensor = model.encode(x).latents
    assert z.shape == (1, 16, 8, 8)
    assert model.decode(z).sample.abs().mean() < 0.5


def test_held_out_pairs_are_about_one_in_twenty_and_leave_each_name_two_styles() -> None:
    held = [held_out_style(name) for name in sorted(TAUGHT)]
    assert {style for style in held if style} <= set(STYLES)
    share = sum(style is not None for style in held) / (len(STYLES) * len(TAUGHT))
    assert 0.03 < share < 0.07


def test_caption_forms_say_the_same_with_and_without_article_and_style() -> None:
    assert caption_forms("owl", "flat", "red") == (
        "owl, flat style, on a red background",
        "an owl, flat style, on a red background",
        "an owl, on a red background",
    )


def test_alone_there_is_one_process() -> None:
    assert (process_count(), rank()) == (1, 0)


def test_thread_count_stays_within_bounds() -> None:
    follower = CoreFollower(most=1)
    for _ in range(3):
        follower.adjust()
        assert follower.count == 1


def test_checkpoint_names_are_translated_and_the_classifier_dropped() -> None:
    assert rename("_blocks.3._bn2.weight") == "blocks.3.project.1.weight"
    assert rename("_conv_stem.weight") == "stem.0.weight"
    assert rename("_fc.bias") is None
