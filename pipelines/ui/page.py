"""What every tab is given: gradio, the studio, the album, the limits, and errors that can be shown.

A handler that raises PluginError is told in words; anything else is a fault of ours, which the
server's log has and the browser has not. gradio shows messages as HTML, so they are escaped.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, no_type_check

from skipstep.pipelines.ui.album import Album
from skipstep.pipelines.ui.limits import Limits
from skipstep.pipelines.ui.studio import Studio
from skipstep.plugins.errors import PluginError

__all__ = ["QUEUE", "Page", "blocks_in_words", "private", "redrawing", "stoppable"]

logger = logging.getLogger(__name__)

LONGEST_MESSAGE = 600
UNREADABLE = (
    "the request cannot be read: give as many values as are taken here, each of its kind, and of "
    "files only those that were uploaded"
)
QUEUE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
"""Events that run the model wait in one line."""


def stoppable() -> dict[str, Any]:
    """Return the settings of a run with a Stop button.

    gradio's page takes a cancelled run for one that goes on, and in its default mode would ignore
    the next click.
    """
    return private(**QUEUE, trigger_mode="multiple")


def redrawing() -> dict[str, Any]:
    """Return the settings of an event that changes the plugins whose controls are shown.

    The controls follow a State, and of that gradio's page hears through the queue alone.
    """
    return private(concurrency_limit=None)


def private(**more: Any) -> dict[str, Any]:
    """Return the settings of an event that belongs to the page alone: clients have the API.

    gradio would lay its spinner, and the word "Error", over every field that the event fills, also
    over the one that has to be put right; what went wrong is said beside the page in any case.
    """
    return {"api_visibility": "private", "show_progress": "hidden", **more}


def blocks_in_words(gradio: Any) -> Any:
    """Return gradio's Blocks, answering in words also to a request that it cannot read itself."""

    class Blocks(gradio.Blocks):  # type: ignore[misc]  # an untyped base
        async def preprocess_data(self, *given: Any, **named: Any) -> Any:
            try:
                return await super().preprocess_data(*given, **named)
            except gradio.Error:
                raise
            except Exception as error:
                logger.info("a request that cannot be read: %s", type(error).__name__)
                raise gradio.Error(UNREADABLE, print_exception=False) from None

    return Blocks


@dataclass(frozen=True)
class Page:
    """What the tabs are built from."""

    gradio: Any
    studio: Studio
    album: Album
    limits: Limits
    folder: Path

    @property
    def uploads(self) -> Path:
        """Return the folder that gradio puts uploads into."""
        return (self.folder / "files").resolve()

    @property
    def reports(self) -> Path:
        """Return the folder of what is saved to be downloaded."""
        path = self.folder / "files" / "reports"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def handled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a handler whose errors reach the browser as words."""
        if inspect.isgeneratorfunction(inspect.unwrap(function)):
            # gradio looks for a generator function, which a checker of types would hide; the mark
            # is taken off again because gradio reads the annotations.
            @functools.wraps(function)
            @no_type_check
            def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
                with self.in_words():
                    yield from function(*args, **kwargs)

            generator.__dict__.pop("__no_type_check__")
            made: Callable[..., Any] = generator
            return made

        @functools.wraps(function)
        def plain(*args: Any, **kwargs: Any) -> Any:
            with self.in_words():
                return function(*args, **kwargs)

        return plain

    @contextmanager
    def in_words(self) -> Iterator[None]:
        """Turn exceptions into gradio's errors."""
        try:
            yield
        except self.gradio.Error:
            raise
        except PluginError as error:
            raise self.error(str(error)) from None
        except Exception as error:
            logger.exception("a request failed")
            raise self.error(
                f"something went wrong inside ({type(error).__name__}): the server's log says what"
            ) from None

    def buttons(self, words: str, name: str) -> tuple[Any, Any]:
        """Return a button that starts a run and one that stops it, in a row of their own."""
        gradio = self.gradio
        with gradio.Row():
            go = gradio.Button(words, variant="primary", elem_id=name, scale=3)
            stop = gradio.Button("Stop", interactive=False, elem_id=f"{name}-stop", scale=1)
        return go, stop

    def connect_run(
        self,
        buttons: tuple[Any, Any],
        handler: Callable[..., Iterator[Any]],
        inputs: list[Any],
        outputs: list[Any],
    ) -> None:
        """Connect a run with its two buttons: the second can be pressed while it goes on.

        Args:
            handler: a generator; the first of `outputs` is the line that says how far it is, which
                is emptied at every end.
        """
        go, stop = buttons
        update, status = self.gradio.update, outputs[0]

        def rest() -> tuple[Any, ...]:
            return "", update(interactive=False)

        go.click(lambda: update(interactive=True), None, [stop], **private(queue=False))
        run = go.click(self.handled(handler), inputs, outputs, **stoppable())
        run.then(rest, None, [status, stop], **private(queue=False))
        stop.click(rest, None, [status, stop], cancels=[run], **private(queue=False))

    def error(self, words: str) -> Any:
        """Return an error that the browser shows."""
        short = words if len(words) <= LONGEST_MESSAGE else f"{words[: LONGEST_MESSAGE - 3]}..."
        return self.gradio.Error(escape(short, quote=False), print_exception=False)
