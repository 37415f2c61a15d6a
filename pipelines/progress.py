"""A progress bar with the time left, on a terminal; silence in a log."""

import contextlib
import sys
from collections.abc import Callable, Iterator

__all__ = ["Progress", "progress_bar"]

Progress = Callable[[int, int, str], None]


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """Give a function (done, total, what runs) that moves the bar, or None without a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("warming up", total=None)

        def tell(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        yield tell
