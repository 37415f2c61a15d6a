"""The evaluation of reference models: which prompts, at which size, what the table says."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from skipstep.benchmarks.reference import COLUMNS, look_up, table_of
from skipstep.pipelines.reference.clips import clip_file
from skipstep.pipelines.reference.data import Pictures, store_pictures
from skipstep.pipelines.reference.evaluate import (
    as_tensor,
    background_accuracy,
    evaluate,
    real_clips,
    standard_size,
)
from skipstep.pipelines.reference.prompts import load_prompts, prompts_of
from skipstep.pipelines.reference.recipe import find_recipe, load_recipe
from skipstep.pipelines.reference.text import load_tokenizer


def test_a_model_of_every_name_is_judged_on_the_256_prompts() -> None:
    assert prompts_of(load_recipe(find_recipe("picture")).data) == load_prompts()


def test_a_model_of_few_names_is_judged_on_each_pair_on_white_and_on_a_colour() -> None:
    data = load_recipe(find_recipe("unet")).data
    prompts = prompts_of(data)
    assert len(prompts) == 2 * len(data.taught) * len(data.styles) == 144
    assert len({prompt["prompt"] for prompt in prompts}) == 144
    assert sum(prompt["background"] is None for prompt in prompts) == 72
    assert sum(prompt["is_held_out"] for prompt in prompts) == 6
    tokenizer = load_tokenizer()
    assert max(len(tokenizer.tokenize(prompt["prompt"])) for prompt in prompts) <= 15


def test_pictures_of_every_size_are_judged_at_128_pixels() -> None:
    for size in (64, 128, 256):
        images = torch.full((2, 3, size, size), 0.25)
        standard = standard_size(images)
        assert standard.shape == (2, 3, 128, 128)
        torch.testing.assert_close(standard, torch.full_like(standard, 0.25))


def test_background_accuracy_counts_coloured_and_white_prompts_apart() -> None:
    prompts = load_prompts()
    white = [p for p in prompts if p["background"] is None][:2]
    red = [p for p in prompts if p["background"] == "red"][:2]
    pixels = np.full((4, 16, 16, 3), 255, np.float32)
    pixels[3] = (220, 50, 47)
    found = background_accuracy(as_tensor(pixels), [*white, *red])
    assert found == {"coloured": 0.5, "white": 1.0}


def test_the_table_has_a_dash_for_what_a_model_has_not() -> None:
    report = {"prompts": 144, "background": {"coloured": 0.98765}, "text_score": {"held_out": None}}
    assert look_up(report, COLUMNS["prompts"]) == "144"
    assert look_up(report, COLUMNS["colour right"]) == "0.988"
    assert look_up(report, COLUMNS["held-out"]) == look_up(report, COLUMNS["motion"]) == "-"
    assert table_of({"unet-v1": report}).row_count == 1


def test_real_clips_are_judged_perfect_and_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(find_recipe("video"))
    data = dataclasses.replace(recipe.data, size=32, frames=5, names="fox; owl")
    recipe = dataclasses.replace(recipe, data=data)
    names = ["fox", "owl", "nib", "die", "abacus", "axe"]
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 32, 32, 4), dtype=np.uint8)
    pixels[..., 3] = 0
    pixels[:, :, 8:24, 8:24, 3] = 255
    pixels[..., :3] = np.minimum(pixels[..., :3], pixels[..., 3:])
    clips = Pictures(names, pixels)
    store_pictures(tmp_path / clip_file(32, 5), clips)
    prompts = prompts_of(data)
    perfect = real_clips(clips, [prompt["name"] for prompt in prompts], prompts)
    monkeypatch.setattr("skipstep.pipelines.reference.evaluate.generate", lambda *_: perfect)
    report = evaluate(recipe, tmp_path / "none.safetensors", tmp_path)
    assert report["prompts"] == 4
    assert report["background"] == {"coloured": 1.0, "white": 1.0}
    assert report["text_score"]["matching"] == report["text_score"]["real"]
    assert report["text_score"]["way"] == pytest.approx(1)
    assert abs(report["frechet"]["to_real"]) < 1e-6 < report["frechet"]["other_real"]
    for measure in ("frame_consistency", "motion"):
        assert report[measure]["made"] == report[measure]["real"]
        assert report["autoencoder"][measure]["real"] == report[measure]["real"]
    # Noise is more than an autoencoder keeps.
    assert report["autoencoder"]["frechet"]["to_real"] > 0
    assert report["autoencoder"]["motion"]["made"] < report["motion"]["real"]
