"""The evaluation of reference models: which prompts, at which size, what the table says."""

import numpy as np
import torch

from skipstep.benchmarks.reference import COLUMNS, look_up, table_of
from skipstep.pipelines.reference.evaluate import as_tensor, background_accuracy, standard_size
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
