"""Measure the reference models and compare checkpoints: one row for each file of weights.

python -m benchmarks.reference                                      every model trained here
python -m benchmarks.reference --model unet --weights a.safetensors b.safetensors
python -m benchmarks.reference --model unet --every 4 --json out/unet.json

Fixed prompts, seed = prompt number, among them (name, style) pairs that were never trained. Needs
the training pictures (`--cache`; made on first use with npm and `pip install "skipstep[train]"`).
What the columns mean: pipelines/reference/evaluate.py.
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from skipstep.pipelines.reference.evaluate import evaluate
from skipstep.pipelines.reference.load import WEIGHTS, find_weights, trained_names
from skipstep.pipelines.reference.recipe import find_recipe, load_recipe

COLUMNS = {
    "prompts": "prompts",
    "colour right": "background.coloured",
    "white right": "background.white",
    "text score": "text_score.matching",
    "shuffled": "text_score.shuffled",
    "way to real": "text_score.way",
    "held-out": "text_score.held_out",
    "Frechet": "frechet.to_real",
    "nearest named": "nearest_real.right_name_trained_pairs",
    "copies": "nearest_real.copies_of_training_pictures",
    "consistency": "frame_consistency.made",
    "motion": "motion.made",
}


def look_up(report: dict[str, Any], path: str) -> str:
    """Return the figure at a dotted path as text, or a dash where a model has none."""
    value: Any = report
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def table_of(reports: dict[str, dict[str, Any]]) -> Table:
    """Return the table: a row for each file of weights."""
    table = Table("weights", *COLUMNS)
    for title, report in reports.items():
        table.add_row(title, *(look_up(report, path) for path in COLUMNS.values()))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="one model; without it every one trained here")
    parser.add_argument(
        "--weights", type=Path, nargs="+", help="files to compare, else the shipped"
    )
    parser.add_argument("--every", type=int, default=1, help="take every n-th prompt only")
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    if arguments.weights and not arguments.model:
        parser.error("--weights needs --model: which recipe do the files belong to?")
    reports: dict[str, dict[str, Any]] = {}
    for name in [arguments.model] if arguments.model else trained_names():
        recipe = load_recipe(find_recipe(name))
        files = arguments.weights or [path for path in [find_weights(recipe)] if path]
        if not files:
            parser.error(f"{name} has no trained weights here: train it, or give --weights")
        for file in files:
            title = f"{recipe.title} {file.stem}" if arguments.weights else recipe.title
            reports[title] = evaluate(recipe, file, arguments.cache, every=arguments.every)
    Console(width=200).print(table_of(reports))
    scorer = json.loads((WEIGHTS / "alignment-v1.json").read_text(encoding="utf-8"))
    print(
        f"the text scorer's ceiling: it finds the right one of {scorer['names']:.0f} names for "
        f"{scorer['twemoji_r1']:.0%} of pictures in a style it never saw, for "
        f"{scorer['trained_styles_r1']:.1%} in those it was trained on"
    )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"reports": reports, "scorer": scorer}, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
