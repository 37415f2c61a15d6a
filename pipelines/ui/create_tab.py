"""The first tab: one prompt, the plain and the accelerated picture under one slider, what was
skipped, what it cost, and the pictures of this visit with their settings.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from skipstep.pipelines.pictures import read_metadata
from skipstep.pipelines.ui import fragments
from skipstep.pipelines.ui.album import read_picture_settings
from skipstep.pipelines.ui.figures import figures_of, verdict_of
from skipstep.pipelines.ui.fragments import FAILED, STOPPED
from skipstep.pipelines.ui.page import Page, private, redrawing, stoppable
from skipstep.pipelines.ui.pair_form import PairForm, watch_pair
from skipstep.pipelines.ui.presets import CUSTOM
from skipstep.pipelines.ui.studio import Pair, Progress
from skipstep.plugins.errors import PluginError

__all__ = ["CreateTab"]

PROMPT = "hamburger, flat style, on a purple background"
MOST_KEPT = 24


class CreateTab:
    """Lays the tab out and connects it; `models` are those that make pictures."""

    def __init__(self, page: Page, models: Sequence[str], pipe: Any) -> None:
        self.page = page
        gradio = page.gradio
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=4, min_width=320):
                self.form = PairForm(page, PROMPT, models, pipe)
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
        with gradio.Accordion("Pictures of this visit, and settings from a picture", open=True):
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
        self.connect()

    def connect(self) -> None:
        """Say what happens when."""
        page, gradio = self.page, self.page.gradio
        shown = [self.live, self.pair, self.ends, self.verdict, self.timeline, self.figures]
        form, box = self.form, self.form.box
        buttons = [form.go, form.stop]
        run = gradio.on(
            [form.go.click, form.prompt.submit],
            page.handled(self.run),
            [*form.fields, self.kept],
            [*shown, *buttons, self.gallery, self.kept],
            **stoppable(),
        )
        at_rest: list[Any] = [self.rest, None, [*shown, *buttons]]
        ended = form.stop.click(*at_rest, cancels=[run], **private(queue=False))
        # A step that was told before the run was cancelled may be shown after it.
        ended.then(*at_rest, **private(queue=False))
        choose = page.handled(self.choose)
        # gradio hands the event to the parameter that is annotated as one.
        choose.__annotations__["picked"] = gradio.SelectData
        self.gallery.select(
            choose,
            [self.kept],
            [self.details, self.reuse, self.chosen_picture],
            **private(queue=False),
        )
        fields = [*form.fields, box.chosen, box.preset, box.plugins]
        self.reuse.click(
            page.handled(self.reload),
            [self.chosen_picture, form.model],
            fields,
            **redrawing(),
        )
        self.upload.upload(
            page.handled(self.reload), [self.upload, form.model], fields, **redrawing()
        )

    def run(self, *given: Any) -> Iterator[tuple[Any, ...]]:
        """Make a pair; a closed browser tab closes this generator, which stops the run."""
        update, page = self.page.gradio.update, self.page
        *fields, kept = given
        asked = self.form.read(fields)
        nothing = update()
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
        try:
            for shown in watch_pair(page, *asked):
                if isinstance(shown, Pair):
                    plain, accelerated = page.album.put(shown, page.studio.pipe)
                    kept = [(str(accelerated), caption(shown)), *kept][:MOST_KEPT]
                    yield (
                        update(visible=False),
                        update(value=(str(plain), str(accelerated)), visible=True),
                        update(visible=True),
                        fragments.verdict_card(verdict_of(shown)),
                        fragments.timeline_strip(shown.timeline),
                        fragments.figure_row(figures_of(shown)),
                        update(interactive=True),
                        update(interactive=False),
                        update(value=kept, visible=True),
                        kept,
                    )
                elif shown is None:
                    yield (nothing,) * 10
                else:
                    yield (update(value=shown), *(nothing,) * 9)
        except Exception:
            yield (*self.rest(FAILED), *(nothing,) * 2)
            raise

    def rest(self, words: str = STOPPED) -> tuple[Any, ...]:
        """Show that nothing is running: for all that a run shows, and its buttons."""
        update = self.page.gradio.update
        hidden = update(visible=False)
        live = update(value=fragments.nothing(words), visible=True)
        buttons = update(interactive=True), update(interactive=False)
        return live, hidden, hidden, "", "", "", *buttons

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
        chosen, names = self.form.box.read(found["recipe"])
        return (
            found["prompt"],
            found["negative"],
            found["model"] if offered else model,
            found["recipe"],
            found["seed"],
            found["steps"],
            found["size"],
            "" if found["guidance"] is None else str(found["guidance"]),
            chosen,
            CUSTOM,
            names,
        )


def caption(pair: Pair) -> str:
    """Return the words under a picture of the gallery."""
    return f"seed {pair.row.seed}, {pair.speedup:.1f}x"
