"""Draw the pictures of the model card: a sheet of samples beside real pictures, and the loss curve.

Run: python -m skipstep.pipelines.reference.sheets       (after training; needs the training cache)
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from skipstep.pipelines.reference.captions import caption, held_out_style
from skipstep.pipelines.reference.data import Pictures
from skipstep.pipelines.reference.examples import taught_styles
from skipstep.pipelines.reference.load import ReferencePipeline, load_reference
from skipstep.pipelines.reference.palette import COLOURS, WHITE

__all__ = ["SAMPLES", "draw_curve", "draw_samples"]

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
SEED = 7


def draw_samples(pipeline: ReferencePipeline, styles: dict[str, Pictures]) -> Image.Image:
    """Return a sheet with each sample above the real picture its caption describes.

    A caption marked with * is a held-out pair: that picture was never trained.
    """
    pipeline.set_progress_bar_config(disable=True)
    rows = -(-len(SAMPLES) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL, rows * (2 * CELL + LABEL)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (name, style, background) in enumerate(SAMPLES):
        left = number % COLUMNS * CELL
        top = number // COLUMNS * (2 * CELL + LABEL)
        generator = torch.Generator().manual_seed(SEED)
        text = caption(name, style, background)
        sample = pipeline(text, generator=generator).images[0]
        pictures = styles[style]
        colour = WHITE if background is None else COLOURS[background]
        real = pictures.composite(pictures.names.index(name), colour)
        sheet.paste(sample, (left, top))
        sheet.paste(Image.fromarray(real.astype(np.uint8)), (left, top + CELL))
        mark = " *" if held_out_style(name) == style else ""
        pen.text((left + 2, top + 2 * CELL + 1), (name + mark)[:24], "black")
        pen.text((left + 2, top + 2 * CELL + 14), f"{style}, {background or 'white'}", "black")
    return sheet


def draw_curve(rows: list[tuple[int, float, float]]) -> Image.Image:
    """Return the training loss over image views, both axes linear."""
    width, height, margin = 720, 360, 48
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    views = [row[0] for row in rows]
    top = 0.6
    right = max(views)

    def place(x: float, y: float) -> tuple[float, float]:
        across = margin + (width - 2 * margin) * x / right
        return across, height - margin - (height - 2 * margin) * min(y, top) / top

    for tick in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        pen.line([place(0, tick), place(right, tick)], "lightgrey")
        pen.text((8, place(0, tick)[1] - 6), f"{tick:.1f}", "black")
    for quarter in range(5):
        x = right * quarter / 4
        pen.text((place(x, 0)[0] - 14, height - margin + 6), f"{x / 1000:.0f} k", "black")
    pen.line([place(v, row[2]) for v, row in zip(views, rows, strict=True)], "navy", 2)
    pen.text((margin, 12), "flow-matching loss, mean of 25 steps (above 0.6 cut)", "black")
    pen.text((width - 150, height - 24), "image views", "black")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--output", type=Path, default=Path("docs/reference"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    curve = json.loads((arguments.cache / "denoiser-curve.json").read_text(encoding="utf-8"))
    draw_curve(curve["rows"]).save(arguments.output / "loss.png")
    styles = taught_styles(arguments.cache)
    sheet = draw_samples(load_reference(), styles)
    sheet.save(arguments.output / "samples.png", optimize=True)


if __name__ == "__main__":
    main()
