"""The tab for models that make clips: the plain and the accelerated clip side by side.

A clip is an animated WebP, which every browser plays and Pillow writes without loss; both start
when both are there, so they run in step.
"""

import base64
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from skipstep.pipelines.ui import fragments
from skipstep.pipelines.ui.figures import figures_of, verdict_of
from skipstep.pipelines.ui.fragments import FAILED, STOPPED
from skipstep.pipelines.ui.page import QUEUE, Page, private, stoppable
from skipstep.pipelines.ui.pair_form import PairForm, watch_pair
from skipstep.pipelines.ui.studio import Pair, Progress

__all__ = ["VideoTab"]

PROMPT = "red heart"


def clips(plain: Path, accelerated: Path) -> str:
    """Return both clips, as the live view shows pictures."""
    tiles = ""
    for name, path in (("plain", plain), ("accelerated", accelerated)):
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        tiles += (
            f'<figure class="tile"><img src="data:image/webp;base64,{data}" '
            f'alt="{escape(name)} clip"><figcaption>{escape(name)}</figcaption></figure>'
        )
    return f'<div class="live">{tiles}</div>'


class VideoTab:
    """Lays the tab out and connects it; `models` are those that make clips."""

    def __init__(self, page: Page, models: list[str], pipe: Any) -> None:
        self.page = page
        gradio = page.gradio
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=4, min_width=320):
                self.form = PairForm(page, PROMPT, models, pipe, prefix="video-", has_frames=True)
            with gradio.Column(scale=7, min_width=360):
                self.live = gradio.HTML(fragments.welcome(), elem_id="video-live")
                verdict = gradio.HTML("", elem_id="video-verdict")
                timeline = gradio.HTML("", elem_id="video-timeline")
                figures = gradio.HTML("", elem_id="video-figures")
                files = gradio.File(
                    label="To keep: the plain and the accelerated clip",
                    file_count="multiple",
                    interactive=False,
                    visible=False,
                    elem_id="video-files",
                )
        form = self.form
        shown = [self.live, verdict, timeline, figures, files, form.go, form.stop]
        run = gradio.on(
            [form.go.click, form.prompt.submit],
            page.handled(self.run),
            form.fields,
            shown,
            **stoppable(),
        )
        ended = form.stop.click(self.rest, None, shown, cancels=[run], **private(queue=False))
        # A step that was told before the run was cancelled may be shown after it.
        ended.then(self.rest, None, shown, **private(queue=False))

    def connect(self, tab: Any) -> None:
        """Load the first model when the tab is looked at, not before."""
        form = self.form
        tab.select(
            self.page.handled(self.look),
            [form.model, form.box.presets],
            form.box.offered,
            **private(**QUEUE),
        )

    def look(self, model: str, presets: dict[str, str]) -> tuple[Any, ...]:
        """Offer what works on the model, once."""
        if len(presets) > 1:
            return (self.page.gradio.update(),) * len(self.form.box.offered)
        return self.form.change_model(model)

    def run(self, *fields: Any) -> Iterator[tuple[Any, ...]]:
        """Make a pair of clips; a closed browser tab closes this generator, which stops the run."""
        update, page = self.page.gradio.update, self.page
        asked = self.form.read(fields)
        same = update()
        busy = (update(interactive=False), update(interactive=True))
        first = fragments.live(Progress("loading"), None)
        yield (first, "", "", "", update(visible=False), *busy)
        try:
            for shown in watch_pair(page, *asked):
                if isinstance(shown, Pair):
                    paths = page.album.put(shown, page.studio.pipe)
                    yield (
                        clips(*paths),
                        fragments.verdict_card(verdict_of(shown)),
                        fragments.timeline_strip(shown.timeline),
                        fragments.figure_row(figures_of(shown)),
                        update(value=[str(path) for path in paths], visible=True),
                        update(interactive=True),
                        update(interactive=False),
                    )
                else:
                    yield (same if shown is None else shown, *(same,) * 6)
        except Exception:
            yield self.rest(FAILED)
            raise

    def rest(self, words: str = STOPPED) -> tuple[Any, ...]:
        """Show that nothing is running: for all that a run shows, and its buttons."""
        update = self.page.gradio.update
        buttons = update(interactive=True), update(interactive=False)
        return fragments.nothing(words), "", "", "", update(visible=False), *buttons
