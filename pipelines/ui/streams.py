"""Run something in a thread and hear what it tells; who stops listening, stops it.

A web server hands a generator on to a browser. When the browser's tab is closed, or Stop is
pressed, the generator is closed: the work is then asked to end, and `stream` returns when it has.
Every quarter of a second a Waiting comes out even where nothing was told, for a generator that
waits cannot be closed.
"""

import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from skipstep.pipelines.batch.stopping import Stop, Stopped

__all__ = ["Tell", "Waiting", "stream"]

PULSE_SECONDS = 0.25

Tell = Callable[[Any], None]


@dataclass(frozen=True)
class Waiting:
    """Nothing new was told for a while."""


@dataclass(frozen=True)
class Ended:
    """The work is over; `error` is what it raised."""

    error: BaseException | None


def stream(
    work: Callable[[Tell, Stop], None], *, pulse: float = PULSE_SECONDS
) -> Generator[Any, None, None]:
    """Yield what `work(tell, stop)` tells, as it comes; raise what it raises.

    Args:
        work: calls `stop.check()` now and then, which raises Stopped when nobody listens any more.
        pulse: seconds after which a Waiting is yielded.
    """
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stop = Stop()

    def run() -> None:
        try:
            work(told.put, stop)
        except BaseException as error:
            told.put(Ended(error))
        else:
            told.put(Ended(None))

    thread = threading.Thread(target=run, name="skipstep-work", daemon=True)
    thread.start()
    try:
        while True:
            try:
                event = told.get(timeout=pulse)
            except queue.Empty:
                event = Waiting()
            if isinstance(event, Ended):
                if event.error is not None and not isinstance(event.error, Stopped):
                    raise event.error
                return
            yield event
    finally:
        stop.ask("nobody is waiting for it any more")
        thread.join()
