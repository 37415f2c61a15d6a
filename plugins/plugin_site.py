"""All that one plugin does to one pipeline, recorded so that undoing it is its reverse."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from skipstep.plugins.errors import NotRestored
from skipstep.plugins.profile import Profile
from skipstep.plugins.report import Report
from skipstep.plugins.run import Run, current_run
from skipstep.plugins.seam import Seam, seam_of

if TYPE_CHECKING:
    from skipstep.plugins.lifecycle import Manager

__all__ = ["Site"]


class Site:
    """What a plugin may do to one pipeline, recorded so that it can be undone."""

    def __init__(self, manager: "Manager", profile_: Profile) -> None:
        self.manager = manager
        self.profile = profile_
        self._seams: list[Seam] = []
        self._begin: list[Callable[[Run], None]] = []
        self._end: list[Callable[[Run], None]] = []
        self._report: list[Callable[[Run, Report], None]] = []
        self.defaults: dict[str, Any] = {}

    def default(self, **arguments: Any) -> None:
        """Pass these to the pipeline's call wherever its caller passes nothing."""
        self.defaults.update(arguments)

    def wrap(self, module: nn.Module, function: Callable[..., Any], order: int) -> None:
        """Call `function(call_next, *args, **kwargs)` whenever `module` is called; small orders are
        outermost.
        """
        seam = seam_of(module)
        seam.add(self, function, order)
        self._seams.append(seam)

    def on_begin(self, function: Callable[[Run], None]) -> None:
        """Call `function(run)` when a run starts, before the pipeline's own code."""
        self._begin.append(function)

    def on_end(self, function: Callable[[Run], None]) -> None:
        """Call `function(run)` when a run ends, also after an exception."""
        self._end.append(function)

    def on_report(self, function: Callable[[Run, Report], None]) -> None:
        """Call `function(run, report)` after a run, to add to its report."""
        self._report.append(function)

    def run(self) -> Run | None:
        """Return this pipeline's run if it is the innermost one of this thread."""
        return current_run(self.manager)

    def begin(self, run: Run) -> None:
        for seam in self._seams:
            seam.heal()
        for function in self._begin:
            function(run)

    def end(self, run: Run) -> None:
        for function in reversed(self._end):
            function(run)

    def report(self, run: Run, report: Report) -> None:
        for function in self._report:
            function(run, report)

    def undo(self) -> None:
        """Take every wrap away and prove that no seam of ours stayed behind."""
        seams, self._seams = self._seams, []
        for seam in seams:
            seam.remove(self)
        for seam in seams:
            if not seam.wraps and seam.is_installed:
                raise NotRestored(
                    f"{type(seam.module).__name__} still carries a seam after detach: "
                    "something else put it back; please report this with the output of `skipstep "
                    "doctor`"
                )
