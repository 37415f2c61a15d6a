"""Draw the pictures of a model card: a sheet of samples beside real ones, and the loss curve.

Run: python -m skipstep.pipelines.reference.sheets unet     (after training; needs the run's folder)
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from skipstep.pipelines.reference.captions import ANIMATED, caption, held_out_style
from skipstep.pipelines.reference.clips import load_clips
from skipstep.pipelines.reference.curve import draw_curve
from skipstep.pipelines.reference.data import Pictures
from skipstep.pipelines.reference.examples import taught_styles
from skipstep.pipelines.reference.load import load_reference
from skipstep.pipelines.reference.palette import COLOURS, WHITE
from skipstep.pipelines.reference.recipe import Data, Recipe, find_recipe, load_recipe

__all__ = ["SAMPLES", "draw_clip_samples", "draw_samples", "draw_sheet", "sheet_prompts"]

# name, style, background; chosen before any was seen.
SAMPLES: tuple[tuple[str, str, str | None], ...] = (
    ("pizza", "3d", "blue"),
    ("grinning face", "flat", None),
    ("cat face", "noto", "pink"),
    ("strawberry", "3d", None),
    ("penguin", "flat", "cyan"),
    ("red heart", "3d", "black"),
    ("octopus", "noto", None),
    ("hamburger", "flat", "purple"),
    ("frog", "3d", "yellow"),
    ("alien", "flat", "black"),
    ("banana", "noto", "green"),
    ("panda", "3d", None),
    ("smiling face with sunglasses", "noto", "red"),
    ("watermelon", "flat", None),
    ("fox", "3d", "grey"),
    ("rocket", "flat", "brown"),
    ("sunflower", "noto", None),
    ("doughnut", "3d", "orange"),
    ("ghost", "flat", "purple"),
    ("christmas tree", "noto", "red"),
    ("unicorn", "3d", None),
    ("butterfly", "flat", "yellow"),
    ("avocado", "noto", "blue"),
    ("robot", "3d", "green"),
)
COLUMNS, CELL, LABEL = 6, 128, 30
CLIP_COLUMNS, CLIP_GAP = 2, 16
SEED = 7


def draw_samples(pipeline: Any, styles: dict[str, Pictures], data: Data) -> Image.Image:
    """Return a sheet with each taught sample above the real picture its caption describes.

    A caption marked with * is a held-out pair: that picture was never trained.
    """
    pipeline.set_progress_bar_config(disable=True)
    taught = [row for row in SAMPLES if row[0] in data.taught]
    rows = -(-len(taught) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL, rows * (2 * CELL + LABEL)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (name, style, background) in enumerate(taught):
        left = number % COLUMNS * CELL
        top = number // COLUMNS * (2 * CELL + LABEL)
        generator = torch.Generator().manual_seed(SEED)
        text = caption(name, style, background)
        sample = pipeline(text, generator=generator).images[0]
        pictures = styles[style]
        colour = WHITE if background is None else COLOURS[background]
        real = pictures.composite(pictures.names.index(name), colour)
        sheet.paste(sample.resize((CELL, CELL)), (left, top))
        sheet.paste(Image.fromarray(real.astype(np.uint8)), (left, top + CELL))
        mark = " *" if held_out_style(name) == style else ""
        pen.text((left + 2, top + 2 * CELL + 1), (name + mark)[:24], "black")
        pen.text((left + 2, top + 2 * CELL + 14), f"{style}, {background or 'white'}", "black")
    return sheet


def draw_clip_samples(pipeline: Any, clips: Pictures, data: Data) -> Image.Image:
    """Return a sheet with all frames of a clip of every taught name above those of the real one.

    Every other clip is on a colour, the colours in turn.
    """
    pipeline.set_progress_bar_config(disable=True)
    size, width = data.size, data.frames * data.size
    cell = (width + CLIP_GAP, 2 * size + LABEL // 2)
    names = sorted(data.taught & set(clips.names))
    rows = -(-len(names) // CLIP_COLUMNS)
    sheet = Image.new("RGB", (CLIP_COLUMNS * cell[0], rows * cell[1]), "white")
    pen = ImageDraw.Draw(sheet)
    for number, name in enumerate(names):
        left, top = number % CLIP_COLUMNS * cell[0], number // CLIP_COLUMNS * cell[1]
        background = list(COLOURS)[number // 2 % len(COLOURS)] if number % 2 else None
        text = caption(name, ANIMATED, background)
        generator = torch.Generator().manual_seed(SEED)
        made = pipeline(text, generator=generator, output_type="pil").frames[0]
        colour = WHITE if background is None else COLOURS[background]
        real = clips.composite(clips.names.index(name), colour).astype(np.uint8)
        for place in range(data.frames):
            sheet.paste(made[place], (left + place * size, top))
            sheet.paste(Image.fromarray(real[place]), (left + place * size, top + size))
        pen.text((left + 2, top + 2 * size + 1), f"{name}, {background or 'white'}", "black")
    return sheet


def sheet_prompts(data: Data) -> list[str]:
    """Return the captions of `SAMPLES` that a recipe teaches, in its own styles."""
    asked = [row for row in SAMPLES if row[0] in data.taught]
    return [
        caption(name, style if style in data.styles else data.styles[0], background)
        for name, style, background in asked
    ]


def draw_sheet(pipeline: Any, recipe: Recipe, columns: int = 8) -> Image.Image:
    """Return a sheet of samples; of a clip it shows first, middle and last frame."""
    pipeline.set_progress_bar_config(disable=True)
    size, is_clips = recipe.data.size, recipe.data.frames > 1
    pictures: list[Image.Image] = []
    for prompt in sheet_prompts(recipe.data):
        generator = torch.Generator().manual_seed(SEED)
        made = pipeline(prompt, generator=generator, output_type="pil")
        if is_clips:
            frames = made.frames[0]
            pictures += [frames[0], frames[len(frames) // 2], frames[-1]]
        else:
            pictures += made.images
    columns = 9 if is_clips else columns
    sheet = Image.new("RGB", (columns * size, -(-len(pictures) // columns) * size), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * size, number // columns * size))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="a trained reference model")
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--output", type=Path, default=Path("docs/reference"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    recipe = load_recipe(find_recipe(arguments.name))
    curve = json.loads(
        (arguments.cache / "runs" / recipe.title / "curve.json").read_text(encoding="utf-8")
    )
    draw_curve(curve["rows"]).save(arguments.output / f"{recipe.name}-loss.png")
    pipeline, data = load_reference(recipe.name), recipe.data
    if data.frames > 1:
        clips = load_clips(arguments.cache, size=data.size, frames=data.frames)
        # Five hundred frames: a palette makes a quarter of the file.
        sheet = draw_clip_samples(pipeline, clips, data).quantize(256, dither=Image.Dither.NONE)
    else:
        sheet = draw_samples(pipeline, taught_styles(arguments.cache), data)
    sheet.save(arguments.output / f"{recipe.name}-samples.png", optimize=True)


if __name__ == "__main__":
    main()
