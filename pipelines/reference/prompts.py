"""The 256 fixed evaluation prompts: 228 of trained pairs and 28 of held-out ones, most on a colour.

Made once: python -m skipstep.pipelines.reference.prompts     (writes prompts.json, same every time)
"""

import argparse
import json
from importlib import resources
from pathlib import Path
from typing import TypedDict

import numpy as np

from skipstep.pipelines.reference.captions import caption, held_out_style
from skipstep.pipelines.reference.palette import COLOURS
from skipstep.pipelines.reference.recipe import Data

__all__ = ["EvaluationPrompt", "choose_prompts", "load_prompts", "prompts_of"]

# (held out, number of prompts, of them on white)
SHARES = ((False, 228, 98), (True, 28, 10))


class EvaluationPrompt(TypedDict):
    """One fixed prompt and the facts it can be checked against."""

    prompt: str
    name: str
    style: str
    background: str | None
    is_held_out: bool


def choose_prompts(
    trained: list[tuple[str, str]], held_out: list[tuple[str, str]]
) -> list[EvaluationPrompt]:
    """Return 256 prompts on distinct (name, style) pairs; colours come equally often."""
    random = np.random.default_rng(256)
    prompts: list[EvaluationPrompt] = []
    for is_held_out, count, on_white in SHARES:
        pairs = held_out if is_held_out else trained
        for place, row in enumerate(random.permutation(len(pairs))[:count]):
            name, style = pairs[row]
            colour = None if place < on_white else list(COLOURS)[(place - on_white) % len(COLOURS)]
            prompts.append(
                {
                    "prompt": caption(name, style, colour),
                    "name": name,
                    "style": style,
                    "background": colour,
                    "is_held_out": is_held_out,
                }
            )
    return prompts


def load_prompts() -> list[EvaluationPrompt]:
    """Load the 256 fixed prompts from package data."""
    source = resources.files("skipstep.pipelines").joinpath("reference/prompts.json")
    prompts: list[EvaluationPrompt] = json.loads(source.read_text(encoding="utf-8"))
    return prompts


def prompts_of(data: Data) -> list[EvaluationPrompt]:
    """Return the fixed prompts of a recipe's data: the 256, or for a selection of names each
    (name, style) pair once on white and once on a colour, the colours in turn.
    """
    if not data.names and data.frames == 1:
        return load_prompts()
    colours: list[str | None] = list(COLOURS)
    pairs = [(name, style) for name in sorted(data.taught) for style in data.styles]
    return [
        {
            "prompt": caption(name, style, colour),
            "name": name,
            "style": style,
            "background": colour,
            "is_held_out": held_out_style(name) == style,
        }
        for number, (name, style) in enumerate(pairs)
        for colour in (None, colours[number % len(colours)])
    ]


def main() -> None:
    from skipstep.pipelines.reference.examples import taught_pairs, taught_styles

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    arguments = parser.parse_args()
    styles = taught_styles(arguments.cache)
    trained, held_out = (
        [(styles[style].names[row], style) for style, row in taught_pairs(styles, held_out=held)]
        for held in (False, True)
    )
    lines = ",\n".join(json.dumps(prompt) for prompt in choose_prompts(trained, held_out))
    path = Path(__file__).with_name("prompts.json")
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
