"""What a notebook shows of a run: the report with its timeline, the comparison as a table.

In a notebook, `pipe.plugin_report()` and `pipe.compare(...)` as the last line of a cell show
themselves. As a script, this writes the same into a file:

    python examples/notebook_report.py report.html
"""

import sys
from pathlib import Path
from typing import Any

import skipstep


def notebook(pipe: Any, prompts: list[str], recipes: list[str], steps: int = 20) -> str:
    """Return what the cells of a notebook would show, as one page."""
    with pipe.plugins("abcache"):
        pipe(prompts[0], num_inference_steps=steps)
    report = pipe.plugin_report()
    comparison = pipe.compare(prompts, recipes, steps=steps)
    cells = [report._repr_html_(), comparison._repr_html_()]
    return "<!doctype html><meta charset=utf-8>" + "<hr>".join(cells)


def main() -> None:
    prompts = ["grinning face, flat style", "strawberry, 3d style"]
    recipes = ["abcache:interval=3", "easycache:threshold=0.05"]
    page = notebook(skipstep.load_reference(), prompts, recipes)
    Path(sys.argv[1]).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
