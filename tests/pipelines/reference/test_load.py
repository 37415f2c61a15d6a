"""The shipped reference model: loads offline, obeys the background, survives a round trip."""

import json
import logging
import socket
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, PixArtAlphaPipeline

from skipstep.pipelines.metrics.background import background_colours
from skipstep.pipelines.reference import load_reference
from skipstep.pipelines.reference.captions import (
    STYLES,
    can_flip,
    caption,
    held_out_style,
    normalise,
)
from skipstep.pipelines.reference.load import ReferencePipeline
from skipstep.pipelines.reference.palette import COLOURS, WHITE
from skipstep.pipelines.reference.prompts import load_prompts
from skipstep.pipelines.reference.text import load_tokenizer

WEIGHTS = resources.files("skipstep.pipelines").joinpath("reference/weights")


@pytest.fixture(scope="module")
def pipeline() -> ReferencePipeline:
    torch.set_num_threads(1)
    loaded: ReferencePipeline = load_reference()
    loaded.set_progress_bar_config(disable=True)
    return loaded


def draw(
    pipeline: DiffusionPipeline, prompts: list[str], steps: int = 2, **options: object
) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(row) for row in range(len(prompts))]
    images = pipeline(
        prompts, num_inference_steps=steps, generator=generators, output_type="pt", **options
    ).images
    assert isinstance(images, torch.Tensor)
    return images


def test_loads_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the reference model must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert len(load_reference().tokenizer) == load_reference().text_encoder.config.vocab_size


class Remembering(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_logs_nothing(dtype: torch.dtype) -> None:
    handler = Remembering()
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "skipstep")]
    for each in loggers:
        each.addHandler(handler)
    try:
        load_reference(dtype=dtype)
    finally:
        for each in loggers:
            each.removeHandler(handler)
    assert handler.messages == []


def test_a_prompt_alone_gives_a_128_pixel_picture(pipeline: ReferencePipeline) -> None:
    image = pipeline("a pizza, 3d style, on a blue background", num_inference_steps=2).images[0]
    assert image.size == (128, 128)
    assert np.asarray(image).std() > 5


def test_same_seed_same_picture_other_seed_other_picture(pipeline: ReferencePipeline) -> None:
    prompts = ["pizza, 3d style", "pizza, 3d style"]
    first, second = draw(pipeline, prompts), draw(pipeline, prompts)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert (first[0] - first[1]).abs().max() > 0.1


def test_batch_neighbours_do_not_matter(pipeline: ReferencePipeline) -> None:
    prompts = ["pizza, 3d style", "grinning face with big eyes, noto style, on a red background"]
    together = draw(pipeline, prompts)
    alone = draw(pipeline, prompts[:1])
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-3)


def test_backgrounds_follow_the_prompt(pipeline: ReferencePipeline) -> None:
    colours = ["blue", "red", "yellow", "black"]
    prompts = [caption("panda", "3d", colour) for colour in colours] + [caption("panda", "3d")]
    images = draw(pipeline, prompts, steps=8) * 2 - 1
    found = background_colours(images, {"white": WHITE, **COLOURS})
    assert found == [*colours, "white"]


def test_saved_pipeline_opens_as_the_stock_class_with_the_same_picture(
    pipeline: ReferencePipeline, tmp_path: Path
) -> None:
    pipeline.save_pretrained(str(tmp_path))
    stock = DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert type(stock) is PixArtAlphaPipeline
    stock.set_progress_bar_config(disable=True)
    prompt = ["frog, 3d style, on a yellow background"]
    options: dict[str, Any] = {
        "guidance_scale": 3.0,
        "use_resolution_binning": False,
        "max_sequence_length": 16,
    }
    torch.testing.assert_close(
        draw(stock, prompt, clean_caption=False, **options),
        draw(pipeline, prompt),
        rtol=0,
        atol=1e-5,
    )
    ours = ReferencePipeline.from_pretrained(tmp_path, local_files_only=True)
    assert type(ours) is ReferencePipeline


def test_bfloat16_pipeline_draws_nearly_the_same_picture(pipeline: ReferencePipeline) -> None:
    half = load_reference(dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    prompt = ["red heart, 3d style, on a black background"]
    difference = draw(half, prompt, steps=4).float() - draw(pipeline, prompt, steps=4)
    assert difference.square().mean() < 0.01


def test_denoiser_has_at_least_ten_blocks_and_64_tokens(pipeline: ReferencePipeline) -> None:
    config = pipeline.transformer.config
    assert len(pipeline.transformer.transformer_blocks) >= 10
    assert (config.sample_size // config.patch_size) ** 2 == 64


def test_only_safetensors_and_json_are_shipped_and_no_file_is_large() -> None:
    sizes = {Path(str(f)).name: Path(str(f)).stat().st_size for f in WEIGHTS.iterdir()}
    assert {Path(name).suffix for name in sizes} == {".safetensors", ".json"}
    assert max(sizes.values()) <= 30_000_000
    assert sum(sizes.values()) <= 60_000_000


def test_evaluation_prompts_are_256_and_say_what_they_claim() -> None:
    prompts = load_prompts()
    assert len(prompts) == len({prompt["prompt"] for prompt in prompts}) == 256
    for prompt in prompts:
        assert prompt["prompt"] == caption(prompt["name"], prompt["style"], prompt["background"])
        assert prompt["is_held_out"] == (held_out_style(prompt["name"]) == prompt["style"])
    assert Counter(p["is_held_out"] for p in prompts) == {False: 228, True: 28}
    colours = {prompt["background"] for prompt in prompts}
    assert colours == {None, *COLOURS}


def test_no_evaluation_prompt_has_unknown_pieces_or_loses_more_than_its_last_word() -> None:
    tokenizer = load_tokenizer()
    for prompt in load_prompts():
        tokens = tokenizer.tokenize(prompt["prompt"])
        assert len(tokens) + 2 <= 17
        assert len(tokens) + 2 <= 16 or tokens[-1] == "background"
        assert "[UNK]" not in tokens


def test_weights_configurations_name_no_place_of_origin() -> None:
    for file in WEIGHTS.iterdir():
        if file.name.endswith(".json"):
            text = file.read_text(encoding="utf-8")
            assert json.loads(text)
            assert "_name_or_path" not in text


def test_captions_follow_the_grammar_and_refuse_unknown_colours() -> None:
    assert caption("pizza", STYLES[0]) == "pizza, flat style"
    assert caption("pizza", "3d", "blue") == "pizza, 3d style, on a blue background"
    with pytest.raises(ValueError, match="'mauve' is not in the palette: choose one of black"):
        caption("pizza", "3d", "mauve")


def test_names_with_sides_are_not_mirrored() -> None:
    assert not can_flip("left facing fist")
    assert can_flip("pizza")
    assert normalise("T-Rex’s “egg”") == "t rexs egg"
