"""The tab that turns one knob: a grid of pictures, and speed against quality."""

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from skipstep.pipelines.pictures import data_uri
from skipstep.pipelines.ui.fragments import outlook
from skipstep.pipelines.ui.limits import read_name
from skipstep.pipelines.ui.long_runs import Part, Result, Step, progress_line
from skipstep.pipelines.ui.page import Page, private
from skipstep.pipelines.ui.recipe_box import working
from skipstep.pipelines.ui.scatter import Point, scatter
from skipstep.pipelines.ui.sweeps import Cell, run_sweep
from skipstep.plugins import catalog, options

__all__ = ["SweepTab", "sheet"]

LARGEST = 320
FIRST, OPTION, VALUES = "easycache", "threshold", "0.02, 0.05, 0.1, 0.2"
OUTLOOK = "A chart of quality over work comes here, and under it the picture of every cell."


def sheet(cells: Sequence[Cell]) -> str:
    """Return the pictures of a sweep with their figures."""
    parts = ['<div class="sheet">']
    for cell in cells:
        seen = cell.outcome
        closeness = "identical" if cell.is_equal else f"{seen.psnr:.1f} dB, LPe {seen.distance:.3f}"
        words = f"{seen.work:.0%} of the work, {closeness}, {seen.seconds:.2f} s"
        name = escape(cell.name)
        parts.append(
            f'<figure><img src="{data_uri(cell.picture, largest=LARGEST)}" alt="{name}">'
            f"<figcaption><b>{name}</b>{escape(words)}</figcaption></figure>"
        )
    return "".join([*parts, "</div>"])


def chart(cells: Sequence[Cell]) -> str:
    """Return speed against quality."""
    points = [
        Point(
            cell.outcome.work,
            math.inf if cell.is_equal else cell.outcome.psnr,
            cell.name,
            "plugins" if cell.options else "fewer",
        )
        for cell in cells
    ]
    return scatter(points, y_name="PSNR to the plain picture (higher is closer)", y_unit=" dB")


def option_names(plugin: str) -> list[str]:
    """Return the options of a plugin."""
    return list(options.schema(catalog.load(plugin)).get("properties", {}))


class SweepTab:
    """Lays the tab out and connects it."""

    def __init__(self, page: Page, model: Any) -> None:
        self.page = page
        gradio = page.gradio
        names = working(page.studio.pipe)
        first = FIRST if FIRST in names else names[0]
        known = option_names(first)
        gradio.HTML(
            '<p class="soft">One option over some values, or two options against each other: every '
            "cell makes the same picture, and fewer plain steps are the line to beat.</p>"
        )
        with gradio.Row(equal_height=True):
            plugin = gradio.Dropdown(names, value=first, label="Plugin", elem_id="sweep-plugin")
            option = gradio.Dropdown(
                known,
                value=OPTION if OPTION in known else known[0],
                label="Option",
                elem_id="sweep-option",
            )
            values = gradio.Textbox(VALUES, label="Values", elem_id="sweep-values")
            second = gradio.Dropdown([("none", ""), *known], value="", label="Second option")
            second_values = gradio.Textbox("", label="Its values")
        with gradio.Row(equal_height=True):
            prompts = gradio.Textbox(
                "frog, 3d style, on a yellow background",
                label="Prompts, one a line; the first is shown",
                lines=2,
                max_lines=8,
                scale=3,
            )
            steps = gradio.Slider(2, page.limits.steps, value=20, step=1, label="Steps")
            seed = gradio.Number(0, label="Seed", precision=0, minimum=0)
        buttons = page.buttons("Sweep", "sweep")
        status = gradio.HTML("", elem_id="sweep-status")
        drawn = gradio.HTML(outlook(OUTLOOK), elem_id="sweep-chart")
        pictures = gradio.HTML("", elem_id="sweep-sheet")
        plugin.change(
            page.handled(self.change_plugin),
            [plugin],
            [option, second],
            **private(queue=False),
        )
        fields = [model, plugin, option, values, second, second_values, prompts, steps, seed]
        page.connect_run(buttons, self.run, fields, [status, drawn, pictures])

    def change_plugin(self, plugin: str) -> tuple[Any, ...]:
        """Offer the options of another plugin."""
        update, known = self.page.gradio.update, option_names(read_name("plugin", plugin))
        first = OPTION if OPTION in known else known[0]
        return update(choices=known, value=first), update(choices=[("none", ""), *known], value="")

    def run(self, *given: Any) -> Iterator[tuple[Any, ...]]:
        """Sweep, showing every cell as it comes."""
        update = self.page.gradio.update
        names = (
            "model",
            "plugin",
            "option",
            "values",
            "second",
            "second_values",
            "prompts",
            "steps",
            "seed",
        )
        fields = dict(zip(names, given, strict=True))
        events = run_sweep(self.page.studio, self.page.limits, **fields)
        yield progress_line(Step(0, 0, "waiting for the model")), "", ""
        cells: list[Cell] = []
        for event in events:
            if isinstance(event, Part):
                cells.append(event.value)
                yield update(), chart(cells), sheet(cells)
            elif isinstance(event, Step):
                yield progress_line(event), update(), update()
            elif isinstance(event, Result):
                yield "", update(), update()
            else:
                yield update(), update(), update()
