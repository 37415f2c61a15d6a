"""The tab that makes 3D Gaussians: photographs in, a viewer that needs no network, files out."""

import base64
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from skipstep.pipelines.splat.examples import HELD_OUT
from skipstep.pipelines.ui.figures import Figure
from skipstep.pipelines.ui.fragments import figure_row
from skipstep.pipelines.ui.long_runs import Result, Step, progress_line
from skipstep.pipelines.ui.page import Page, private
from skipstep.pipelines.ui.sculpting import ENDINGS, Sculpture, draw_example, run_splats

__all__ = ["SplatTab"]

# The model was trained on none of the objects from HELD_OUT on.
FIRST_OBJECT = HELD_OUT + 103
REFINE_STEPS = 100


def framed(made: Sculpture) -> str:
    """Return the viewer in a frame of its own, and the turn for browsers without WebGL."""
    page = made.viewer.read_text(encoding="utf-8")
    turn = base64.b64encode(made.turn.read_bytes()).decode("ascii")
    count = f"{len(made.gaussians):,} Gaussians"
    return (
        '<div class="scene"><iframe class="viewer" title="3D viewer: drag to turn, scroll to zoom" '
        f'sandbox="allow-scripts" srcdoc="{escape(page, quote=True)}"></iframe>'
        f'<figure><img src="data:image/webp;base64,{turn}" alt="{count}, turning once around">'
        "<figcaption>the same, without WebGL</figcaption></figure></div>"
    )


def figures(made: Sculpture) -> str:
    """Return what it took."""
    told = [Figure("Gaussians", f"{len(made.gaussians):,}", "after the faint ones went")]
    words = {"reconstruct": "one forward pass", "refine": "on the photographs"}
    for name, seconds in made.seconds.items():
        told.append(Figure(name, f"{seconds:.2f} s", words[name]))
    return figure_row(told)


class SplatTab:
    """Lays the tab out and connects it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        gradio = page.gradio
        gradio.HTML(
            '<p class="soft">Photographs of one object, taken evenly around it and a little from '
            "above, become 3D Gaussians in one forward pass; the refinement then fits them to the "
            "photographs. The object is cut out by its transparency, or stands before plain white "
            "or black.</p>"
        )
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=4, min_width=320):
                photos = gradio.Gallery(
                    label="Photographs, in the order around the object",
                    file_types=list(ENDINGS),
                    type="filepath",
                    sources=["upload"],
                    columns=4,
                    height=210,
                    object_fit="contain",
                    allow_preview=False,
                    interactive=True,
                    buttons=[],
                    elem_id="photos",
                )
                example = gradio.Button("Draw an example", size="sm", elem_id="splat-example")
                with gradio.Row():
                    background = gradio.Dropdown(
                        ["white", "black"], value="white", label="Background", min_width=110
                    )
                    refine = gradio.Slider(
                        0,
                        page.limits.refine_steps,
                        value=REFINE_STEPS,
                        step=10,
                        label="Steps of refinement",
                        elem_id="refine",
                        min_width=150,
                    )
                buttons = page.buttons("Reconstruct", "splat")
            with gradio.Column(scale=7, min_width=360):
                scene = gradio.HTML(
                    '<div class="scene"><p class="viewer blank" aria-hidden="true"></p></div>',
                    elem_id="scene",
                )
                status = gradio.HTML("", elem_id="splat-status")
                told = gradio.HTML("", elem_id="splat-figures")
                files = gradio.File(
                    label="To keep: three formats of splats, the viewer as one page, the turn",
                    file_count="multiple",
                    interactive=False,
                    visible=False,
                    elem_id="splat-files",
                )
        seed = gradio.State(FIRST_OBJECT)
        example.click(
            page.handled(self.draw), [seed], [photos, background, seed], **private(queue=False)
        )
        fields = [photos, background, refine]
        page.connect_run(buttons, self.run, fields, [status, scene, told, files])

    def draw(self, seed: int) -> tuple[list[str], str, int]:
        """Draw the next example."""
        paths = draw_example(seed, self.page.folder / "files" / "examples")
        return [str(path) for path in paths], "white", seed + 1

    def run(
        self, photos: list[tuple[str, str | None]] | None, background: str, refine_steps: float
    ) -> Iterator[tuple[Any, ...]]:
        """Reconstruct, telling how far it is."""
        update, same = self.page.gradio.update, self.page.gradio.update()
        events = run_splats(
            self.page.limits,
            self.page.reports,
            photos=[Path(path) for path, _ in photos or []],
            background=background,
            refine_steps=refine_steps,
        )
        for event in events:
            if isinstance(event, Result):
                made = event.value
                kept = update(value=[str(path) for path in made.files], visible=True)
                yield "", framed(made), figures(made), kept
            elif isinstance(event, Step):
                yield progress_line(event), same, same, same
            else:
                yield same, same, same, same
