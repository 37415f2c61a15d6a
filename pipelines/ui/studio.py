"""One pipeline for everybody who has the page open: models by name, one call at a time.

A picture, or a clip, is made twice, from the same noise: by the plain pipeline and with the recipe.
Plain ones are kept, so that only the first comparison of a prompt takes both times. As in
`compare`, a run of two steps that is not timed comes before the first run of a recipe: it is then
that a plugin learns the model.
"""

import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from skipstep.pipelines.batch.making import in_words, is_out_of_memory, why_no_picture
from skipstep.pipelines.batch.rows import Row
from skipstep.pipelines.batch.stopping import Stop, Stopped
from skipstep.pipelines.compare.arms import Arm
from skipstep.pipelines.compare.run import device_of, learning_steps, prompt_parameter
from skipstep.pipelines.compare.tally import timeline
from skipstep.pipelines.generate import size_arguments
from skipstep.pipelines.metrics.fidelity import WINDOW, feature_distance, psnr, ssim
from skipstep.pipelines.pictures import read_pictures
from skipstep.pipelines.ui.offered import CLIP_ARGUMENT, REFERENCE, load_by_name
from skipstep.pipelines.ui.streams import Tell
from skipstep.pipelines.ui.watching import Previews, call_arguments, to_preview, watched
from skipstep.plugins.errors import Incompatible, PluginError
from skipstep.plugins.few_step import taught_steps
from skipstep.plugins.options import build

__all__ = [
    "Pair",
    "Progress",
    "Side",
    "Studio",
    "call_beside_prompt",
    "in_plain_words",
]

logger = logging.getLogger(__name__)

LARGEST_SHELF = 256 * 2**20

Load = Callable[[str], Any]
Picture = Float[Tensor, "1 f 3 height width"]


@dataclass(frozen=True)
class Progress:
    """How far a picture is: `side` is what is being made, `step` of `steps` are done."""

    side: Literal["loading", "warming up", "plain", "accelerated"]
    step: int = 0
    steps: int = 0
    preview: NDArray[np.uint8] | None = None
    plain: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Side:
    """One picture or clip and what it took; `is_kept` says that it was not made now.

    `steps` are a student's own, None where they are the row's.
    """

    picture: Picture
    seconds: float
    peak_bytes: int | None
    report: Any = None
    is_kept: bool = False
    steps: int | None = None


@dataclass(frozen=True)
class Pair:
    """The plain and the accelerated picture of one prompt, and what lies between them.

    `ssim` is None for pictures below 11 pixels; `timeline` has the share of each step's work that
    was computed.
    """

    row: Row
    model: str
    pipeline: str
    plain: Side
    accelerated: Side
    psnr: float
    ssim: float | None
    feature_distance: float
    timeline: list[float] = field(default_factory=list)

    @property
    def speedup(self) -> float:
        """Return how many times faster the accelerated run was; one run each."""
        return self.plain.seconds / max(self.accelerated.seconds, 1e-9)


@dataclass
class Shelf:
    """Plain pictures that were made before, the oldest leaving when it is full."""

    largest_bytes: int = LARGEST_SHELF
    sides: "OrderedDict[Any, Side]" = field(default_factory=OrderedDict)

    def get(self, key: Any) -> Side | None:
        """Return what is kept under a key, and note that it was wanted."""
        if key in self.sides:
            self.sides.move_to_end(key)
        return self.sides.get(key)

    def put(self, key: Any, side: Side) -> None:
        """Keep a picture."""
        self.sides[key] = side
        while len(self.sides) > 1 and self.held_bytes > self.largest_bytes:
            self.sides.popitem(last=False)

    @property
    def held_bytes(self) -> int:
        """Return how many bytes the pictures take."""
        return sum(side.picture.nbytes for side in self.sides.values())


class Studio:
    """Holds the pipeline; whoever uses it holds the lock.

    Args:
        models: names that may be used, the first one is there from the start.
        any_model: other names may be typed too.
        load: returns the pipeline of a name.
    """

    def __init__(
        self,
        models: tuple[str, ...] = (REFERENCE,),
        *,
        any_model: bool = False,
        load: Load | None = None,
    ) -> None:
        self.models = models
        self.any_model = any_model
        self.load = load or load_by_name
        self.lock = threading.Lock()
        self.model: str | None = None
        self.pipe: Any = None
        self.previews = Previews(None)
        self.shelf = Shelf()
        self.met: set[Any] = set()
        self.running = 0
        """Steps since the start; a test sees by it that a run has ended."""

    def check_model(self, model: str) -> str:
        """Return the name if it may be used.

        Raises PluginError with the names that may.
        """
        if model not in self.models and not self.any_model:
            raise PluginError(
                f"model {model!r} is not offered here: {', '.join(self.models)} (who started this "
                "server can add others with --model, or allow all with --any-model)"
            )
        return model

    def use(self, model: str) -> Any:
        """Return the pipeline of a model, loading it in place of the one that is there.

        Call it while you hold the lock.
        """
        self.check_model(model)
        if model != self.model:
            self.forget()
            self.pipe = self.load(model)
            if hasattr(self.pipe, "set_progress_bar_config"):
                self.pipe.set_progress_bar_config(disable=True)
            self.previews = Previews(self.pipe)
            self.model = model
        return self.pipe

    def forget(self) -> None:
        """Let go of the pipeline and of what was made with it."""
        self.pipe, self.model = None, None
        self.previews = Previews(None)
        self.shelf.sides.clear()
        self.met.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def held(self, stop: Stop) -> Iterator[None]:
        """Hold the pipeline, after those who came before; who is asked to end leaves the line."""
        while not self.lock.acquire(timeout=0.1):
            stop.check()
        try:
            yield
        finally:
            self.lock.release()

    def make_pair(
        self, row: Row, model: str, tell: Tell, stop: Stop, *, frames: int | None = None
    ) -> Pair:
        """Make a picture twice, or a clip of so many frames; `tell` hears Progress.

        Raises Stopped when asked to end, PluginError for what cannot be made.
        """
        with self.held(stop):
            if model != self.model:
                tell(Progress("loading"))
            pipe = self.use(model)
            plugins = tuple(build(entry) for entry in read_json(row.plugins))
            check_sort(pipe, is_clip=frames is not None)
            call = call_of(pipe, row, frames)
            size = (row.width, row.height, frames)
            key = (model, row.prompt, row.negative, row.seed, size, row.steps, row.guidance)
            plain = self.shelf.get(key)
            if plain is None:
                plain = self.make_side(pipe, row, call, (), tell, stop, None)
                self.shelf.put(key, plain)
            else:
                plain = Side(plain.picture, plain.seconds, plain.peak_bytes, is_kept=True)
            shown = to_shown(plain.picture)
            accelerated = self.make_side(pipe, row, call, plugins, tell, stop, shown)
            return judged(pipe, row, model, plain, accelerated)

    def make_side(
        self,
        pipe: Any,
        row: Row,
        call: dict[str, Any],
        plugins: tuple[Any, ...],
        tell: Tell,
        stop: Stop,
        plain: NDArray[np.uint8] | None,
    ) -> Side:
        """Make one of the two pictures."""
        side: Literal["plain", "accelerated"] = "accelerated" if plain is not None else "plain"
        own = taught_steps(plugins)
        steps = row.steps if own is None else own
        with in_plain_words(pipe), pipe.plugins(*plugins) if plugins else nullcontext():
            self.warm_up(pipe, row, call, plugins, tell, stop, plain)

            looking = 0.0

            def see(step: int, latents: Tensor | None) -> None:
                nonlocal looking
                started = time.perf_counter()
                self.running += 1
                picture = self.previews.picture(latents, row.width, row.height)
                tell(Progress(side, step, steps, picture, plain))
                looking += time.perf_counter() - started

            tell(Progress(side, 0, steps, None, plain))
            on_gpu = device_of(pipe).type == "cuda"
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            started = time.perf_counter()
            result = pipe(
                **call,
                num_inference_steps=steps,
                generator=[torch.Generator("cpu").manual_seed(row.seed)],
                **watched(pipe, stop, see),
            )
            if on_gpu:
                torch.cuda.synchronize()
            # Previews are ours, not the pipeline's.
            seconds = time.perf_counter() - started - looking
            report = pipe.plugin_report() if plugins else None
        picture = read_pictures(result)[:1]
        if side == "plain" and why_no_picture(picture) is not None:
            raise PluginError(
                "the plain picture is of one colour or holds values that are not numbers: this "
                "model does not work with this dtype, size or guidance"
            )
        self.previews.learn(picture[0, picture.shape[1] // 2])
        peak = torch.cuda.max_memory_allocated() if on_gpu else None
        return Side(picture, seconds, peak, report, steps=own)

    def warm_up(
        self,
        pipe: Any,
        row: Row,
        call: dict[str, Any],
        plugins: tuple[Any, ...],
        tell: Tell,
        stop: Stop,
        plain: NDArray[np.uint8] | None,
    ) -> None:
        """Let the plugins learn the model, or the plain pipeline meet a size, in a short run."""
        size = (row.width, row.height, call.get("num_frames"))
        if not plugins and size in self.met:
            return
        tell(Progress("warming up", 0, row.steps, None, plain))
        arm = Arm("warming up", "plugins", row.steps, plugins)
        pipe(
            **call,
            num_inference_steps=learning_steps(arm),
            generator=[torch.Generator("cpu").manual_seed(row.seed)],
            **watched(pipe, stop, lambda step, latents: None),
        )
        self.met.add(size)


@contextmanager
def in_plain_words(pipe: Any) -> Iterator[None]:
    """Turn what a pipeline raises into errors that can be shown."""
    try:
        yield
    except (PluginError, Stopped):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise PluginError(
                "out of memory: try a smaller size, or a recipe that holds less (the Plugins tab)"
            ) from error
        logger.warning("%s failed", type(pipe).__name__, exc_info=True)
        raise PluginError(f"{type(pipe).__name__}: {in_words(error)}") from error


def read_json(text: str) -> list[dict[str, Any]]:
    """Return the plugins of a row."""
    listed: list[dict[str, Any]] = json.loads(text)
    return listed


def check_sort(pipe: Any, *, is_clip: bool) -> None:
    """Raise Incompatible if a pipeline makes pictures where clips are wanted, or the other way."""
    makes = CLIP_ARGUMENT in call_arguments(type(pipe))
    if makes and not is_clip:
        raise Incompatible(
            f"{type(pipe).__name__} makes clips: the Video tab shows them (--model offers it there)"
        )
    if is_clip and not makes:
        raise Incompatible(f"{type(pipe).__name__} makes pictures: the Create tab shows them")


def call_of(pipe: Any, row: Row, frames: int | None = None) -> dict[str, Any]:
    """Return the arguments of a row's call, steps and noise aside.

    Raises Incompatible for what the pipeline does not take.
    """
    if prompt_parameter(pipe) != "prompt":
        raise Incompatible(
            f"{type(pipe).__name__} is told what to make by class numbers: this page has prompts"
        )
    call: dict[str, Any] = {"prompt": [row.prompt], "output_type": "np"}
    if row.width is not None:
        call |= size_arguments(pipe, f"{row.width}x{row.height}")
    if row.guidance is not None:
        call["guidance_scale"] = row.guidance
    if row.negative is not None:
        call["negative_prompt"] = [row.negative]
    known = call_arguments(type(pipe))
    if frames is not None:
        call[CLIP_ARGUMENT] = frames
    for name in call:
        if name not in known:
            raise Incompatible(f"{type(pipe).__name__} takes no {name}: leave it out")
    return call


def call_beside_prompt(pipe: Any, row: Row) -> dict[str, Any]:
    """Return what a row says of a call that makes other prompts."""
    own = ("prompt", "negative_prompt", "output_type")
    return {name: value for name, value in call_of(pipe, row).items() if name not in own}


def to_shown(picture: Picture) -> NDArray[np.uint8]:
    """Return what is shown while the other one is being made: of a clip its middle."""
    return to_preview(picture[0, picture.shape[1] // 2])


def judged(pipe: Any, row: Row, model: str, plain: Side, accelerated: Side) -> Pair:
    """Measure how close the two pictures are."""
    own, other = accelerated.picture, plain.picture
    closeness = ssim(own[0], other[0]) if min(own.shape[-2:]) >= WINDOW else None
    return Pair(
        row=row,
        model=model,
        pipeline=type(pipe).__name__,
        plain=plain,
        accelerated=accelerated,
        psnr=float(psnr(own, other)),
        ssim=None if closeness is None else float(closeness.mean()),
        feature_distance=float(feature_distance(own[0], other[0]).mean()),
        timeline=timeline(accelerated.report) if accelerated.report is not None else [],
    )
