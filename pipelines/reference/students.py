"""Measure the shipped students beside their teacher and draw them side by side.

Run: python -m skipstep.pipelines.reference.students       (needs the pictures in the cache folder)

The 256 evaluation prompts, seed = prompt number, scores as in evaluate.py. The teacher takes 28
steps at guidance 3, which is 56 network evaluations a picture; beside the students it also takes
their own numbers of steps. `--arms` measures some and keeps the figures of the others; the sheet
has all. Writes
`docs/reference/students.json` and `students.png`, and each student's figures into its
`few_step.json`.
"""

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from skipstep.pipelines.metrics.frechet import fit_projection, frechet_distance
from skipstep.pipelines.metrics.text import text_score
from skipstep.pipelines.reference.autoencoder import to_tensor
from skipstep.pipelines.reference.captions import caption
from skipstep.pipelines.reference.evaluate import (
    background_accuracy,
    features_of,
    other_pictures,
    real_pictures,
)
from skipstep.pipelines.reference.examples import taught_styles
from skipstep.pipelines.reference.load import ReferencePipeline, load_reference
from skipstep.pipelines.reference.prompts import load_prompts
from skipstep.pipelines.reference.sheets import SAMPLES, SEED
from skipstep.plugins.few_step import student_folder
from skipstep.samplers.distill.student import JSON

__all__ = ["ARMS", "draw_students", "measure_arms"]

LOGGER = logging.getLogger(__name__)
BATCH, CELL, LABEL = 16, 128, 16

# name -> (shipped student or None, steps, network evaluations a picture)
ARMS: dict[str, tuple[str | None, int, int]] = {
    "teacher, 28 steps": (None, 28, 56),
    "teacher, 4 steps": (None, 4, 8),
    "teacher, 2 steps": (None, 2, 4),
    "student, 4 steps": ("reference-4", 4, 4),
    "student, 2 steps": ("reference-2", 2, 2),
}


def make(
    pipe: ReferencePipeline, arm: str, prompts: list[str], cached: Path
) -> Float[Tensor, "b 3 128 128"]:
    """Return one picture in [-1, 1] per prompt, made by an arm; batches are kept in `cached`."""
    student, steps, _ = ARMS[arm]
    pipe.set_progress_bar_config(disable=True)
    cached.mkdir(parents=True, exist_ok=True)
    if student is not None:
        pipe.enable_plugin("few_step", weights=student)
    parts = []
    for start in range(0, len(prompts), BATCH):
        file = cached / f"{start:05d}.npy"
        if not file.exists():
            chunk = prompts[start : start + BATCH]
            seeds = [torch.Generator().manual_seed(start + i) for i in range(len(chunk))]
            images = pipe(
                chunk, num_inference_steps=steps, generator=seeds, output_type="np"
            ).images
            np.save(file, (images * 255).round().astype(np.uint8))
        parts.append(np.load(file))
    pipe.disable_plugins()
    LOGGER.info("%s: %d pictures", arm, len(prompts))
    return to_tensor(np.concatenate(parts).astype(np.float32))


def measure_arms(
    pictures: Mapping[str, Float[Tensor, "b 3 128 128"]], cache: Path
) -> dict[str, dict[str, float]]:
    """Return text score, Frechet distance to the real pictures and background accuracy by arm."""
    prompts = load_prompts()
    texts = [prompt["prompt"] for prompt in prompts]
    styles = taught_styles(cache)
    real = features_of(real_pictures(styles, prompts))
    other = features_of(other_pictures(styles, prompts))
    projection = fit_projection(torch.cat([real, other]))
    truth = projection.apply(real)
    return {
        arm: {
            "evaluations": ARMS[arm][2],
            "text_score": text_score(x, texts).mean().item(),
            "frechet_distance": frechet_distance(projection.apply(features_of(x)), truth),
            "background_accuracy": background_accuracy(x, prompts)["coloured"],
        }
        for arm, x in pictures.items()
    }


def draw_students(pipe: ReferencePipeline, arms: list[str], count: int = 12) -> Image.Image:
    """Return a sheet: a row per arm, a column per prompt, equal seeds."""
    sheet = Image.new("RGB", (count * CELL, len(arms) * (CELL + LABEL)), "white")
    pen = ImageDraw.Draw(sheet)
    texts = [caption(*sample) for sample in SAMPLES[:count]]
    for row, arm in enumerate(arms):
        student, steps, evaluations = ARMS[arm]
        if student is not None:
            pipe.enable_plugin("few_step", weights=student)
        top = row * (CELL + LABEL)
        pen.text((4, top + 2), f"{arm}, {evaluations} network evaluations", "black")
        seeds = [torch.Generator().manual_seed(SEED) for _ in texts]
        made = pipe(texts, num_inference_steps=steps, generator=seeds).images
        for column, picture in enumerate(made):
            sheet.paste(picture, (column * CELL, top + LABEL))
        pipe.disable_plugins()
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--output", type=Path, default=Path("docs/reference"))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    pipe = load_reference()
    texts = [prompt["prompt"] for prompt in load_prompts()]
    arms: list[str] = arguments.arms
    folders = {arm: arguments.cache / "students" / arm.replace(", ", "-") for arm in arms}
    pictures = {arm: make(pipe, arm, texts, folders[arm]) for arm in arms}
    found = measure_arms(pictures, arguments.cache)
    arguments.output.mkdir(parents=True, exist_ok=True)
    kept = arguments.output / "students.json"
    before = json.loads(kept.read_text(encoding="utf-8"))["arms"] if kept.exists() else {}
    report = json.dumps({"prompts": len(texts), "arms": {**before, **found}}, indent=1) + "\n"
    kept.write_text(report, encoding="utf-8")
    for arm in arms:
        student = ARMS[arm][0]
        if student is not None:
            file = student_folder(student) / JSON
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            content["measured"] = found[arm]
            file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draw_students(pipe, list(ARMS)).save(arguments.output / "students.png", optimize=True)
    LOGGER.info("%s", report)


if __name__ == "__main__":
    main()
