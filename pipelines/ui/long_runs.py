"""Runs of many pipeline calls: they hold the model, tell how far they are, and can be stopped."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from html import escape
from typing import Any

from skipstep.pipelines.batch.stopping import Stop
from skipstep.pipelines.progress import Progress
from skipstep.pipelines.ui.streams import Tell, stream
from skipstep.pipelines.ui.studio import Studio, in_plain_words

__all__ = ["Part", "Result", "Step", "progress_line", "run_with_model"]


@dataclass(frozen=True)
class Step:
    """`done` of `total` calls are behind us; `what` is running."""

    done: int
    total: int
    what: str


@dataclass(frozen=True)
class Part:
    """Something that can be shown already."""

    value: Any


@dataclass(frozen=True)
class Result:
    """What came out."""

    value: Any


Action = Callable[[Any, Progress, Stop, Tell], Any]


def run_with_model(studio: Studio, model: str, action: Action) -> Generator[Any, None, None]:
    """Yield Step, Part, Waiting, and at last the Result of `action(pipe, progress, stop, tell)`.

    Raises PluginError for a model that is not offered, and what the action raises, in words.
    """
    studio.check_model(model)

    def work(tell: Tell, stop: Stop) -> None:
        def progress(done: int, total: int, what: str) -> None:
            stop.check()
            tell(Step(done, total, what))

        with studio.held(stop):
            tell(Step(0, 0, "loading the model"))
            pipe = studio.use(model)
            with in_plain_words(pipe):
                tell(Result(action(pipe, progress, stop, tell)))

    return stream(work)


def progress_line(step: Step | None) -> str:
    """Return a bar with words."""
    if step is None:
        return ""
    share = step.done / step.total if step.total else 0.0
    words = f"{step.done} of {step.total}: {step.what}" if step.total else step.what
    return (
        f'<div class="bar" role="progressbar" aria-label="{escape(words)}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share * 100:.0f}">'
        f'<i style="width:{share:.1%}"></i></div>'
        f'<p class="soft" role="status">{escape(words)}</p>'
    )
