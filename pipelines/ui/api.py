"""The named endpoints, for gradio_client and for plain HTTP: the page's deeds as functions.

Each takes plain JSON and answers plain JSON; a picture is a file that the client downloads. They
check what they are given as the page does. What they do is what their docstrings say, which gradio
shows at /gradio_api/info.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from skipstep.pipelines.batch.rows import Row
from skipstep.pipelines.batch.stopping import Stop
from skipstep.pipelines.compare.comparison import Comparison
from skipstep.pipelines.ui.album import read_picture_settings
from skipstep.pipelines.ui.autotune_tab import recipe_of, run_autotune
from skipstep.pipelines.ui.batch_desk import BatchDesk
from skipstep.pipelines.ui.compare_tab import run_compare, save_comparison
from skipstep.pipelines.ui.figures import describe_pair
from skipstep.pipelines.ui.limits import read_frames, read_name, read_settings
from skipstep.pipelines.ui.long_runs import Result, Step
from skipstep.pipelines.ui.offered import REFERENCE
from skipstep.pipelines.ui.page import QUEUE, Page
from skipstep.pipelines.ui.sculpting import Sculpture, run_splats, run_splats_from_text
from skipstep.pipelines.ui.streams import Tell, stream
from skipstep.pipelines.ui.studio import Pair, Progress
from skipstep.pipelines.ui.sweeps import run_sweep
from skipstep.plugins import catalog, options
from skipstep.plugins.errors import PluginError
from skipstep.plugins.options import show

__all__ = ["Api"]

Json = dict[str, Any]


def as_file(path: Path | str) -> Json:
    """Return a file in the form that gradio's clients download."""
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


class Api:
    """The endpoints of a page; each is a method of the endpoint's name."""

    def __init__(self, page: Page, desk: BatchDesk) -> None:
        self.page = page
        self.desk = desk
        long: list[Callable[..., Any]] = [
            self.generate,
            self.clip,
            self.splats,
            self.splats_from_text,
            self.compare,
            self.sweep,
            self.autotune,
        ]
        quick: list[Callable[..., Any]] = [
            self.batch_start,
            self.batch_status,
            self.batch_stop,
            self.batch_resume,
            self.models,
            self.plugins,
            self.plugin_schema,
            self.read_picture,
        ]
        for function in long:
            self.add(function, **QUEUE)
        for function in quick:
            self.add(function, queue=False)

    def add(self, function: Callable[..., Any], **how: Any) -> None:
        """Offer a method under its own name."""
        self.page.gradio.api(self.page.handled(function), api_name=function.__name__, **how)

    def generate(
        self,
        prompt: str,
        recipe: str = "",
        seed: int = 0,
        steps: int = 20,
        size: str = "",
        guidance: float | None = None,
        negative: str = "",
        model: str = REFERENCE,
    ) -> Iterator[Json]:
        """Make a picture twice, plain and with a recipe; the last answer has both files and what
        lies between them, those before say how far it is.
        """
        row = self.read(prompt, recipe, seed, steps, size, guidance, negative)
        yield from self.pair(row, model, None)

    def clip(
        self,
        prompt: str,
        model: str,
        recipe: str = "",
        seed: int = 0,
        steps: int = 20,
        frames: int = 9,
        size: str = "",
        guidance: float | None = None,
        negative: str = "",
    ) -> Iterator[Json]:
        """Make a clip twice, plain and with a recipe; answers as generate does, in WebP files."""
        row = self.read(prompt, recipe, seed, steps, size, guidance, negative)
        yield from self.pair(row, model, read_frames(frames, row, self.page.limits))

    def read(
        self,
        prompt: object,
        recipe: object,
        seed: object,
        steps: object,
        size: object,
        guidance: object,
        negative: object,
    ) -> Row:
        """Return the settings of a picture, checked."""
        given = {
            "prompt": prompt,
            "negative": negative,
            "seed": seed,
            "size": size,
            "steps": steps,
            "guidance": guidance,
            "plugins": recipe,
        }
        return read_settings(given, self.page.limits)

    def pair(self, row: Row, model: object, frames: int | None) -> Iterator[Json]:
        """Make both sides, telling how far it is."""
        page = self.page
        name = page.studio.check_model(read_name("model", model))

        def work(tell: Tell, stop: Stop) -> None:
            pair = page.studio.make_pair(row, name, tell, stop, frames=frames)
            tell((pair, *page.album.put(pair, page.studio.pipe)))

        for event in stream(work):
            if isinstance(event, Progress):
                yield {"state": event.side, "step": event.step, "steps": event.steps}
            elif isinstance(event, tuple):
                pair, plain, accelerated = event
                yield finished(pair, plain, accelerated)

    def splats(
        self, photos: list[Json], background: str = "white", refine_steps: int = 100
    ) -> Iterator[Json]:
        """Turn uploaded photographs of one object into 3D Gaussians; the last answer has the files:
        .ply, .splat, .spz, a page with a viewer, a turn around them as WebP.
        """
        if not isinstance(photos, list):
            raise PluginError(f"photographs are {show(photos)}: upload some (handle_file)")
        events = run_splats(
            self.page.limits,
            self.page.reports,
            photos=[self.uploaded(each) for each in photos],
            background=background,
            refine_steps=refine_steps,
        )
        yield from relayed(events, finished_scene)

    def splats_from_text(
        self, prompt: str, seed: int = 0, steps: int = 20, model: str = REFERENCE
    ) -> Iterator[Json]:
        """Draw one object and lift it into 3D Gaussians; the last answer has the files of splats
        and the drawing.
        """
        events = run_splats_from_text(
            self.page.studio,
            self.page.limits,
            self.page.reports,
            model=read_name("model", model),
            prompt=prompt,
            seed=seed,
            steps=steps,
        )
        yield from relayed(events, finished_scene)

    def compare(
        self,
        prompts: list[str],
        recipes: list[str],
        steps: int = 20,
        seed: int = 0,
        model: str = REFERENCE,
    ) -> Iterator[Json]:
        """Compare recipes with the plain pipeline; the last answer has all numbers and the files:
        a page, a sheet of pictures, the numbers as JSON.
        """
        events = run_compare(
            self.page.studio,
            self.page.limits,
            model=read_name("model", model),
            prompts=prompts,
            recipes=recipes,
            steps=steps,
            seed=seed,
        )

        def answer(found: Comparison) -> Json:
            files = [as_file(path) for path in save_comparison(found, self.page.reports)]
            return {"comparison": found.to_dict(), "files": files}

        yield from relayed(events, answer)

    def sweep(
        self,
        plugin: str,
        option: str,
        values: str,
        prompts: list[str],
        second: str = "",
        second_values: str = "",
        steps: int = 20,
        seed: int = 0,
        model: str = REFERENCE,
    ) -> Iterator[Json]:
        """Run a plugin with one option after another; the last answer has a cell for each."""
        events = run_sweep(
            self.page.studio,
            self.page.limits,
            model=read_name("model", model),
            plugin=plugin,
            option=option,
            values=values,
            second=second,
            second_values=second_values,
            prompts=prompts,
            steps=steps,
            seed=seed,
        )
        yield from relayed(events, lambda cells: {"cells": [cell.to_dict() for cell in cells]})

    def autotune(
        self,
        target: str,
        value: float,
        prompts: str = "",
        steps: int = 20,
        trials: int = 12,
        minutes: float = 5.0,
        model: str = REFERENCE,
    ) -> Iterator[Json]:
        """Find the recipe that meets target_speedup, max_feature_distance or min_psnr; the last
        answer has the recipe and every trial.
        """
        events = run_autotune(
            self.page.studio,
            self.page.limits,
            model=read_name("model", model),
            target=target,
            value=value,
            prompts=prompts,
            steps=steps,
            trials=trials,
            minutes=minutes,
        )
        yield from relayed(
            events, lambda found: {"recipe": recipe_of(found), "tuning": found.to_dict()}
        )

    def batch_start(
        self, file: Json, recipe: str = "", steps: int = 20, seed: int = 0, model: str = REFERENCE
    ) -> str:
        """Begin a batch on an uploaded file of prompts; the answer is its key."""
        return self.desk.start(
            self.uploaded(file),
            model=read_name("model", model),
            recipe=recipe,
            steps=steps,
            seed=seed,
        )

    def batch_status(self, key: str) -> Json:
        """Say how far a batch is; when it is done, with its files."""
        status = self.desk.status(key)
        return status.to_dict() | {"files": [as_file(path) for path in status.files]}

    def batch_stop(self, key: str) -> Json:
        """Ask a batch to end after the picture that is being made."""
        self.desk.stop(key)
        return self.desk.status(key).to_dict()

    def batch_resume(self, key: str) -> Json:
        """Go on with a batch that was stopped."""
        self.desk.resume(key)
        return self.desk.status(key).to_dict()

    def models(self) -> Json:
        """List the models that are offered, and say whether others may be named."""
        studio = self.page.studio
        return {"models": list(studio.models), "any_model": studio.any_model}

    def plugins(self) -> Json:
        """List the plugins, which of them work on the model that is loaded, and why not."""
        studio = self.page.studio
        with studio.lock:
            pipe = studio.pipe if studio.pipe is not None else studio.use(studio.models[0])
            return {"model": studio.model, **pipe.list_plugins().to_dict()}

    def plugin_schema(self, name: str) -> Json:
        """Return the options of a plugin as a JSON schema."""
        return options.schema(catalog.load(read_name("plugin", name)))

    def read_picture(self, file: Json) -> Json:
        """Return the settings that an uploaded PNG was made with."""
        return read_picture_settings(self.uploaded(file), self.page.limits)

    def uploaded(self, file: object) -> Path:
        """Return the path of an upload; no other file of this machine is opened.

        Raises PluginError.
        """
        given = file.get("path") if isinstance(file, dict) else None
        if not isinstance(given, str):
            raise PluginError(f"no file was given, but {show(file)}: upload one (handle_file)")
        try:
            path = Path(given).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            raise PluginError("there is no such upload: upload the file first") from None
        if not path.is_relative_to(self.page.uploads):
            raise PluginError("this is no uploaded file: upload it first (handle_file)")
        return path


def relayed(events: Iterator[Any], answer: Callable[[Any], Json]) -> Iterator[Json]:
    """Yield how far a run is, and at last what `answer` makes of its result."""
    for event in events:
        if isinstance(event, Result):
            yield {"state": "done", **answer(event.value)}
        elif isinstance(event, Step):
            yield {"state": event.what, "step": event.done, "steps": event.total}


def finished(pair: Pair, plain: Path, accelerated: Path) -> Json:
    """Return the last answer of `generate`."""
    files = {"plain": as_file(plain), "accelerated": as_file(accelerated)}
    return {"state": "done", **describe_pair(pair), **files}


def finished_scene(made: Sculpture) -> Json:
    """Return the last answer of `splats`."""
    files = [as_file(path) for path in made.files]
    return {"gaussians": len(made.gaussians), "seconds": made.seconds, "files": files}
