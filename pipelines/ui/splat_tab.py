"""The tab that makes 3D Gaussians: photographs or a prompt in, a viewer without network, files."""

import base64
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from skipstep.pipelines.splat.examples import HELD_OUT
from skipstep.pipelines.ui.figures import Figure
from skipstep.pipelines.ui.fragments import figure_row, outlook
from skipstep.pipelines.ui.long_runs import Result, Step, progress_line
from skipstep.pipelines.ui.page import Page, private
from skipstep.pipelines.ui.sculpting import (
    ENDINGS,
    Sculpture,
    draw_example,
    run_splats,
    run_splats_from_text,
)

__all__ = ["SplatTab"]

# The model was trained on none of the objects from HELD_OUT on.
FIRST_OBJECT = HELD_OUT + 103
REFINE_STEPS = 100
PROMPT = "strawberry, 3d style"
DRAWING_STEPS = 20
PHOTOGRAPHS, TEXT = "photographs", "a prompt"
OUTLOOK = "The object comes here: drag to turn it, scroll to zoom. The files to keep stand below."
ABOUT = {
    PHOTOGRAPHS: "Photographs of one object, taken evenly around it and a little from above, "
    "become 3D Gaussians in one forward pass; steps of refinement then fit them to the "
    "photographs. The object is cut out by its transparency, or stands before plain white or "
    "black.",
    TEXT: "The model chosen in Create draws one object on white, and a second model lifts the "
    "drawing into 3D in one forward pass. The one that is shipped makes a relief with a guessed "
    "back.",
}


def framed(made: Sculpture) -> str:
    """Return the viewer in a frame of its own, and the turn for browsers without WebGL."""
    page = made.viewer.read_text(encoding="utf-8")
    turn = base64.b64encode(made.turn.read_bytes()).decode("ascii")
    count = f"{len(made.gaussians):,} Gaussians"
    drawing = ""
    if made.drawing is not None:
        data = base64.b64encode(made.drawing.read_bytes()).decode("ascii")
        drawing = (
            f'<figure><img src="data:image/png;base64,{data}" alt="what the model drew">'
            "<figcaption>the drawing</figcaption></figure>"
        )
    return (
        '<div class="scene"><iframe class="viewer" title="3D viewer: drag to turn, scroll to zoom" '
        f'sandbox="allow-scripts" srcdoc="{escape(page, quote=True)}"></iframe>'
        f'<div class="beside">{drawing}<figure><img src="data:image/webp;base64,{turn}" '
        f'alt="{count}, turning once around">'
        "<figcaption>a turn around it, without WebGL</figcaption></figure></div></div>"
    )


def figures(made: Sculpture) -> str:
    """Return what it took."""
    told = [Figure("Gaussians", f"{len(made.gaussians):,}", "after the faint ones went")]
    words = {
        "reconstruct": "one forward pass",
        "refine": "on the photographs",
        "draw": "text to picture",
        "lift": "picture to Gaussians",
    }
    for name, seconds in made.seconds.items():
        told.append(Figure(name, f"{seconds:.2f} s", words[name]))
    return figure_row(told)


def soft(words: str) -> str:
    """Return a paragraph that explains."""
    return f'<p class="soft">{words}</p>'


class SplatTab:
    """Lays the tab out and connects it; `model` is the field that says which one draws."""

    def __init__(self, page: Page, model: Any) -> None:
        self.page = page
        gradio = page.gradio
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=4, min_width=320):
                source = gradio.Radio(
                    [PHOTOGRAPHS, TEXT], value=PHOTOGRAPHS, label="Made from", elem_id="splat-from"
                )
                about = gradio.HTML(soft(ABOUT[PHOTOGRAPHS]))
                with gradio.Column() as of_photos:
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
                            label="Refinement",
                            elem_id="refine",
                            min_width=150,
                            scale=2,
                        )
                with gradio.Column(visible=False) as of_text:
                    prompt = gradio.Textbox(
                        PROMPT,
                        label="Prompt",
                        info="one object; the white background is added",
                        lines=2,
                        max_length=4000,
                        elem_id="splat-prompt",
                    )
                    with gradio.Row():
                        number = gradio.Number(
                            0, label="Seed", precision=0, minimum=0, min_width=110
                        )
                        steps = gradio.Slider(
                            2,
                            page.limits.steps,
                            value=DRAWING_STEPS,
                            step=1,
                            label="Steps",
                            elem_id="splat-steps",
                            min_width=150,
                            scale=2,
                        )
                buttons = page.buttons("Make splats", "splat")
            with gradio.Column(scale=7, min_width=360):
                scene = gradio.HTML(outlook(OUTLOOK), elem_id="scene")
                status = gradio.HTML("", elem_id="splat-status")
                told = gradio.HTML("", elem_id="splat-figures")
                files = gradio.File(
                    label="To keep: splats in three formats, the viewer as one page, pictures",
                    file_count="multiple",
                    interactive=False,
                    visible=False,
                    elem_id="splat-files",
                )
        seed = gradio.State(FIRST_OBJECT)
        example.click(
            page.handled(self.draw), [seed], [photos, background, seed], **private(queue=False)
        )
        source.change(self.choose, [source], [about, of_photos, of_text], **private(queue=False))
        fields = [source, photos, background, refine, model, prompt, number, steps]
        page.connect_run(buttons, self.run, fields, [status, scene, told, files])

    def choose(self, source: str) -> tuple[Any, ...]:
        """Show the fields of what the splats are made from."""
        update = self.page.gradio.update
        is_text = source == TEXT
        return soft(ABOUT[source]), update(visible=not is_text), update(visible=is_text)

    def draw(self, seed: int) -> tuple[list[str], str, int]:
        """Draw the next example."""
        paths = draw_example(seed, self.page.folder / "files" / "examples")
        return [str(path) for path in paths], "white", seed + 1

    def run(
        self,
        source: str,
        photos: list[tuple[str, str | None]] | None,
        background: str,
        refine_steps: float,
        model: str,
        prompt: str,
        seed: float,
        steps: float,
    ) -> Iterator[tuple[Any, ...]]:
        """Make splats of photographs or of a prompt, telling how far it is."""
        page = self.page
        update, same = page.gradio.update, page.gradio.update()
        if source == TEXT:
            events = run_splats_from_text(
                page.studio,
                page.limits,
                page.reports,
                model=model,
                prompt=prompt,
                seed=seed,
                steps=steps,
            )
        else:
            events = run_splats(
                page.limits,
                page.reports,
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
