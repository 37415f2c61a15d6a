"""How a run ends early: between batches, with everything that is finished kept.

The first Ctrl-C or SIGTERM asks; the batch that is being made ends, its shard is dropped and will
be made again. A second Ctrl-C does not wait.
"""

import contextlib
import errno
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["Stop", "Stopped", "Unwritable"]


class Stopped(Exception):
    """Report a run that was asked to end; `signal` is None when it was not by a signal."""

    def __init__(self, words: str, signal_number: int | None = None) -> None:
        super().__init__(words)
        self.signal = signal_number


class Unwritable(Exception):
    """Report an output folder that takes no more, in words."""

    @staticmethod
    def of(error: OSError) -> "Unwritable":
        """Say what an error of the system means for the run."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Unwritable("the disk is full: free space")
        place = f" ({error.filename})" if error.filename else ""
        return Unwritable(f"the output folder cannot be written: {error.strerror}{place}: mend it")


class Stop:
    """A wish to end, which the run looks at between batches."""

    def __init__(self) -> None:
        self.words: str | None = None
        self.signal: int | None = None

    def ask(self, words: str, signal_number: int | None = None) -> None:
        """Ask the run to end; the first reason counts."""
        if self.words is None:
            self.words, self.signal = words, signal_number

    def check(self) -> None:
        """Raise Stopped if somebody asked."""
        if self.words is not None:
            raise Stopped(self.words, self.signal)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Take a signal as a wish to end; a second Ctrl-C as an order."""
        if self.words is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.ask(f"stopped by {signal.Signals(number).name}", number)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Catch Ctrl-C and SIGTERM in this block; signals reach the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self.on_signal) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
