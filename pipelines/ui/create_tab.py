"""The first tab: one prompt, the plain and the accelerated picture under one slider, what was
skipped, what it cost, and the pictures of this visit with their settings.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skipstep.pipelines.batch.stopping import Stop
from skipstep.pipelines.pictures import read_metadata
from skipstep.pipelines.ui import fragments
from skipstep.pipelines.ui.album import read_picture_settings
from skipstep.pipelines.ui.figures import figures_of, verdict_of
from skipstep.pipelines.ui.limits import read_settings
from skipstep.pipelines.ui.page import QUEUE, Page, private, stoppable
from skipstep.pipelines.ui.presets import CUSTOM, presets_of
from skipstep.pipelines.ui.recipe_box import RecipeBox
from skipstep.pipelines.ui.streams import Tell, Waiting, stream
from skipstep.pipelines.ui.studio import Pair, Progress
from skipstep.plugins.errors import PluginError

__all__ = ["CreateTab"]

PROMPT = "hamburger, flat style, on a purple background"
LARGEST_SEED = 2**53 - 1
MOST_KEPT = 24


class CreateTab:
    """Lays the tab out and connects it.

    `form` is what a request consists of, in the order of `settings`.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        gradio = page.gradio
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=4, min_width=320):
                self.prompt = gradio.Textbox(
                    PROMPT,
                    label="Prompt",
                    lines=2,
                    max_lines=6,
                    max_length=4000,
                    elem_id="prompt",
                    autofocus=True,
                )
                with gradio.Row():
                    self.go = gradio.Button("Generate", variant="primary", elem_id="generate")
                    self.stop = gradio.Button("Stop", interactive=False, elem_id="stop")
                self.model = gradio.Dropdown(
                    list(page.studio.models),
                    value=page.studio.models[0],
                    label="Model",
                    info="a folder or a hub id can be typed" if page.studio.any_model else None,
                    allow_custom_value=page.studio.any_model,
                    elem_id="model",
                )
                self.box = RecipeBox(page, presets_of(page.studio.pipe))
                with gradio.Accordion("Picture", open=False):
                    with gradio.Row():
                        self.seed = gradio.Number(
                            0,
                            label="Seed",
                            precision=0,
                            minimum=0,
                            maximum=LARGEST_SEED,
                            elem_id="seed",
                            min_width=110,
                        )
                        self.steps = gradio.Slider(
                            2, page.limits.steps, value=20, step=1, label="Steps", elem_id="steps"
                        )
                    with gradio.Row():
                        self.size = gradio.Textbox(
                            "", label="Size", info="256 or 512x768; empty: its own", min_width=110
                        )
                        self.guidance = gradio.Number(
                            None,
                            label="Guidance",
                            info="empty: the model's own",
                            minimum=0,
                            maximum=100,
                            min_width=110,
                        )
                    self.negative = gradio.Textbox(
                        "", label="Negative prompt", lines=1, max_length=4000
                    )
            with gradio.Column(scale=7, min_width=360):
                self.live = gradio.HTML(fragments.welcome(), elem_id="live")
                self.pair = gradio.ImageSlider(
                    label="plain | accelerated",
                    show_label=False,
                    type="filepath",
                    format="png",
                    interactive=False,
                    visible=False,
                    max_height=480,
                    elem_id="pair",
                )
                self.ends = gradio.HTML(fragments.ends(), elem_id="ends", visible=False)
                self.verdict = gradio.HTML("", elem_id="verdict")
                self.timeline = gradio.HTML("", elem_id="timeline")
                self.figures = gradio.HTML("", elem_id="figures")
        with gradio.Accordion("Pictures of this visit", open=True):
            self.kept = gradio.State([])
            self.chosen_picture = gradio.State(None)
            self.gallery = gradio.Gallery(
                label="Accelerated pictures; each file knows how it was made",
                columns=8,
                height=150,
                object_fit="contain",
                allow_preview=False,
                buttons=[],
                visible=False,
                elem_id="gallery",
                interactive=False,
            )
            with gradio.Row(equal_height=False):
                self.details = gradio.Code(
                    label="How the chosen picture was made",
                    language="json",
                    interactive=False,
                    visible=False,
                    scale=3,
                )
                with gradio.Column(scale=2, min_width=260):
                    self.reuse = gradio.Button("Use its settings", visible=False, elem_id="reuse")
                    self.upload = gradio.File(
                        label="Reload settings from a PNG",
                        file_types=[".png"],
                        elem_id="reload",
                        height=120,
                    )
        self.form = [
            self.prompt,
            self.negative,
            self.model,
            self.box.recipe,
            self.seed,
            self.steps,
            self.size,
            self.guidance,
        ]
        self.connect()

    def connect(self) -> None:
        """Say what happens when."""
        page, gradio = self.page, self.page.gradio
        shown = [self.live, self.pair, self.ends, self.verdict, self.timeline, self.figures]
        buttons = [self.go, self.stop]
        run = gradio.on(
            [self.go.click, self.prompt.submit],
            page.handled(self.run),
            [*self.form, self.kept],
            [*shown, *buttons, self.gallery, self.kept],
            show_progress="hidden",
            **stoppable(),
        )
        # A run that failed leaves the page as one that was stopped.
        run.failure(self.rest, None, [self.live, *buttons], **private(queue=False))
        self.stop.click(
            self.rest, None, [self.live, *buttons], cancels=[run], **private(queue=False)
        )
        choose = page.handled(self.choose)
        # gradio hands the event to the parameter that is annotated as one.
        choose.__annotations__["picked"] = gradio.SelectData
        self.gallery.select(
            choose,
            [self.kept],
            [self.details, self.reuse, self.chosen_picture],
            **private(queue=False),
        )
        fields = [*self.form, self.box.chosen, self.box.preset, self.box.plugins]
        self.reuse.click(
            page.handled(self.reload),
            [self.chosen_picture, self.model],
            fields,
            **private(queue=False),
        )
        self.upload.upload(
            page.handled(self.reload), [self.upload, self.model], fields, **private(queue=False)
        )
        self.model.change(
            page.handled(self.change_model),
            [self.model],
            [self.box.preset, self.box.plugins, self.box.recipe, self.box.chosen],
            **private(**QUEUE),
        )

    def run(self, *given: Any) -> Iterator[tuple[Any, ...]]:
        """Make a pair; a closed browser tab closes this generator, which stops the run."""
        update, page = self.page.gradio.update, self.page
        *fields, kept = given
        names = ("prompt", "negative", "model", "plugins", "seed", "steps", "size", "guidance")
        form = dict(zip(names, fields, strict=True))
        model = page.studio.check_model(str(form.pop("model")))
        row = read_settings(form, page.limits)
        nothing = update()
        last: Any = None
        preview = None

        def work(tell: Tell, stop: Stop) -> None:
            tell(page.studio.make_pair(row, model, tell, stop))

        busy = (update(interactive=False), update(interactive=True))
        yield (
            update(value=fragments.live(Progress("loading"), None), visible=True),
            update(visible=False),
            update(visible=False),
            "",
            "",
            "",
            *busy,
            nothing,
            nothing,
        )
        for event in stream(work):
            if isinstance(event, Pair):
                plain, accelerated = page.album.put(event, page.studio.pipe)
                kept = [(str(accelerated), caption(event)), *kept][:MOST_KEPT]
                yield (
                    update(visible=False),
                    update(value=(str(plain), str(accelerated)), visible=True),
                    update(visible=True),
                    fragments.verdict_card(verdict_of(event)),
                    fragments.timeline_strip(event.timeline),
                    fragments.figure_row(figures_of(event)),
                    update(interactive=True),
                    update(interactive=False),
                    update(value=kept, visible=True),
                    kept,
                )
                return
            if isinstance(event, Waiting):
                event = last
            if event is None:
                yield (nothing,) * 10
                continue
            if last is not None and event.side != last.side:
                preview = None
            preview = event.preview if event.preview is not None else preview
            last = event
            yield (update(value=fragments.live(event, preview)), *(nothing,) * 9)

    def rest(self) -> tuple[Any, ...]:
        """Show that nothing is running."""
        update = self.page.gradio.update
        return (
            update(value=fragments.stopped()),
            update(interactive=True),
            update(interactive=False),
        )

    def choose(self, kept: list[tuple[str, str]], picked: Any) -> tuple[Any, ...]:
        """Show how the picture that was clicked was made."""
        update = self.page.gradio.update
        path, _ = kept[int(picked.index)]
        if not Path(path).is_file():
            raise PluginError("this picture is no longer kept here: make it again")
        return update(value=read_metadata(Path(path)), visible=True), update(visible=True), path

    def reload(self, path: Any, model: str) -> tuple[Any, ...]:
        """Fill the form with the settings of a PNG; a model that is not offered here stays out."""
        found = read_picture_settings(path, self.page.limits)
        studio = self.page.studio
        offered = found["model"] in studio.models
        chosen, names = self.box.read(found["recipe"])
        return (
            found["prompt"],
            found["negative"],
            found["model"] if offered else model,
            found["recipe"],
            found["seed"],
            found["steps"],
            found["size"],
            found["guidance"],
            chosen,
            CUSTOM,
            names,
        )

    def change_model(self, model: str) -> tuple[Any, ...]:
        """Load a model and offer what works on it."""
        studio = self.page.studio
        with studio.lock:
            pipe = studio.use(model)
            return self.box.offer(pipe)


def caption(pair: Pair) -> str:
    """Return the words under a picture of the gallery."""
    return f"seed {pair.row.seed}, {pair.row.steps} steps, {pair.speedup:.1f}x"
