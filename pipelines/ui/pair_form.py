"""The form that asks for a pair, of pictures or of clips, and the run that it starts."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from skipstep.pipelines.batch.rows import Row
from skipstep.pipelines.batch.stopping import Stop
from skipstep.pipelines.ui import fragments
from skipstep.pipelines.ui.limits import read_frames, read_optional, read_settings
from skipstep.pipelines.ui.page import QUEUE, Page, private
from skipstep.pipelines.ui.recipe_box import RecipeBox
from skipstep.pipelines.ui.streams import Tell, Waiting, stream
from skipstep.pipelines.ui.studio import Pair

__all__ = ["PairForm", "watch_pair"]

LARGEST_SEED = 2**53 - 1
FRAMES = 9


class PairForm:
    """Prompt, model, recipe and settings; `fields` is what `read` reads.

    Args:
        prefix: goes before the ids of the elements; the first form has none.
        models: the names that are offered.
        pipe: the pipeline of the first model, None if it is not loaded yet.
        has_frames: ask for a number of frames.
    """

    def __init__(
        self,
        page: Page,
        prompt: str,
        models: Sequence[str],
        pipe: Any,
        *,
        prefix: str = "",
        has_frames: bool = False,
    ) -> None:
        self.page = page
        gradio = page.gradio
        self.prompt = gradio.Textbox(
            prompt,
            label="Prompt",
            lines=2,
            max_lines=6,
            max_length=4000,
            elem_id=f"{prefix}prompt",
            autofocus=not prefix,
        )
        with gradio.Row():
            self.go = gradio.Button("Generate", variant="primary", elem_id=f"{prefix}generate")
            self.stop = gradio.Button("Stop", interactive=False, elem_id=f"{prefix}stop")
        self.model = gradio.Dropdown(
            list(models),
            value=models[0],
            label="Model",
            info="a folder or a hub id can be typed" if page.studio.any_model else None,
            allow_custom_value=page.studio.any_model,
            elem_id=f"{prefix}model",
        )
        self.box = RecipeBox(page, pipe, prefix)
        with gradio.Accordion("Clip" if has_frames else "Picture", open=False):
            with gradio.Row():
                self.seed = gradio.Number(
                    0,
                    label="Seed",
                    precision=0,
                    minimum=0,
                    maximum=LARGEST_SEED,
                    elem_id=f"{prefix}seed",
                    min_width=110,
                )
                self.steps = gradio.Slider(
                    2,
                    page.limits.steps,
                    value=20,
                    step=1,
                    label="Steps",
                    elem_id=f"{prefix}steps",
                )
            with gradio.Row():
                self.size = gradio.Textbox(
                    "", label="Size", info="256 or 512x768; empty: its own", min_width=110
                )
                # A field of numbers cannot be empty: gradio's page shows 0 there, and sends it.
                self.guidance = gradio.Textbox(
                    "", label="Guidance", info="a number; empty: its own", min_width=110
                )
            self.frames: Any = None
            if has_frames:
                self.frames = gradio.Number(
                    FRAMES,
                    label="Frames",
                    info="models take 4 n + 1 or 8 n + 1",
                    precision=0,
                    minimum=2,
                    maximum=page.limits.frames,
                    elem_id=f"{prefix}frames",
                )
            self.negative = gradio.Textbox("", label="Negative prompt", lines=1, max_length=4000)
        self.names = {
            "prompt": self.prompt,
            "negative": self.negative,
            "model": self.model,
            "plugins": self.box.recipe,
            "seed": self.seed,
            "steps": self.steps,
            "size": self.size,
            "guidance": self.guidance,
        }
        if has_frames:
            self.names["frames"] = self.frames
        self.fields = list(self.names.values())
        self.model.change(
            page.handled(self.change_model), [self.model], self.box.offered, **private(**QUEUE)
        )

    def read(self, values: Sequence[Any]) -> tuple[Row, str, int | None]:
        """Return the settings, the model and the frames that the fields hold.

        Raises PluginError for what is not allowed.
        """
        given = dict(zip(self.names, values, strict=True))
        model = self.page.studio.check_model(str(given.pop("model")))
        frames = given.pop("frames", None)
        given["guidance"] = read_optional("guidance", given["guidance"])
        row = read_settings(given, self.page.limits)
        if self.frames is None:
            return row, model, None
        return row, model, read_frames(frames, row, self.page.limits)

    def change_model(self, model: str) -> tuple[Any, ...]:
        """Load a model and offer what works on it."""
        studio = self.page.studio
        studio.check_model(model)
        if model != studio.model:
            self.page.gradio.Info(f"Loading {escape(model)}", duration=4)
        with studio.lock:
            return self.box.offer(studio.use(model))


def watch_pair(page: Page, row: Row, model: str, frames: int | None) -> Iterator[str | Pair | None]:
    """Yield the live view whenever it changes, None while nothing does, and at last the Pair."""
    last: Any = None
    preview = None

    def work(tell: Tell, stop: Stop) -> None:
        tell(page.studio.make_pair(row, model, tell, stop, frames=frames))

    for event in stream(work):
        if isinstance(event, Pair):
            yield event
            return
        if isinstance(event, Waiting):
            yield None
            continue
        if last is not None and event.side != last.side:
            preview = None
        preview = event.preview if event.preview is not None else preview
        last = event
        yield fragments.live(event, preview)
