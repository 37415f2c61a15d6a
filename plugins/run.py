"""One pipeline call: which step it is at, which guidance branch is being computed, and all state
that dies with it.

Pipelines do not tell. The step is counted where it happens, at `scheduler.step`; the branch (cond,
uncond, ...) is the k-th call of a denoiser since the last step. Pipelines that step copies of their
scheduler never reach the tap: for them a changed timestep argument starts a new step (this costs
one host sync a call, and only they pay it).
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch

__all__ = ["Run", "StepTap", "current_run", "running"]

TIMESTEP_NAMES = ("timestep", "timesteps", "t", "timestep_ratio", "sigma")


class Run:
    """Hold the state of one pipeline call; made when it starts, dropped when it ends, however it
    ends.
    """

    def __init__(self, owner: object, pipe: Any, arguments: dict[str, Any]) -> None:
        self.owner = owner
        self.pipe = pipe
        self.arguments = arguments
        self.state: dict[Any, Any] = {}
        self.step = 0
        self.seconds = 0.0
        self._taps = 0
        self._calls: dict[int, int] = {}
        self._timestep: float | None = None
        self._count: int | None = None

    @property
    def count(self) -> int:
        """Return how many scheduler steps this run takes; 0 where the pipeline gives no way to
        know.
        """
        if self._count is None:
            self._count = self._find_count()
        return self._count

    def _find_count(self) -> int:
        declared = getattr(self.pipe, "_num_timesteps", None)
        if isinstance(declared, int) and declared > 0:
            return declared
        scheduler = getattr(self.pipe, "scheduler", None)
        timesteps = getattr(scheduler, "timesteps", None)
        if timesteps is not None and len(timesteps) > 0:
            begin = getattr(scheduler, "begin_index", None) or 0
            return len(timesteps) - int(begin)
        asked = self.arguments.get("num_inference_steps")
        return asked if isinstance(asked, int) else 0

    def enter(self, denoiser: object, arguments: dict[str, Any]) -> tuple[int, int]:
        """Note a denoiser call; return (step index, guidance branch)."""
        if self._taps == 0:
            self._follow_timestep(arguments)
        branch = self._calls.get(id(denoiser), 0)
        self._calls[id(denoiser)] = branch + 1
        return self.step, branch

    def advance(self) -> None:
        """Note that the scheduler stepped."""
        self._taps += 1
        self._next_step()

    def _next_step(self) -> None:
        self.step += 1
        self._calls.clear()

    def _follow_timestep(self, arguments: dict[str, Any]) -> None:
        value = next((arguments[n] for n in TIMESTEP_NAMES if n in arguments), None)
        if isinstance(value, torch.Tensor):
            value = value.flatten()[0].item() if value.numel() else None
        if not isinstance(value, int | float):
            return
        if self._timestep is not None and value != self._timestep:
            self._next_step()
        self._timestep = value


class StepTap:
    """Stand in for `scheduler.step` during a run and count; a deepcopy of the scheduler gets its
    own plain `step`.
    """

    def __init__(self, scheduler: Any, run: Run) -> None:
        self.scheduler = scheduler
        self.run = run
        self.step: Callable[..., Any] = scheduler.step
        functools.update_wrapper(self, self.step)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.step(*args, **kwargs)
        self.run.advance()
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self.scheduler))
        return self.step if copied is None else type(copied).step.__get__(copied)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Put the tap on the scheduler and take it off again."""
        own = self.scheduler.__dict__.get("step")
        self.scheduler.__dict__["step"] = self
        try:
            yield
        finally:
            if own is None:
                self.scheduler.__dict__.pop("step", None)
            else:
                self.scheduler.__dict__["step"] = own


_INNERMOST: ContextVar[Run | None] = ContextVar("skipstep_run", default=None)


def current_run(owner: object) -> Run | None:
    """Return the innermost run of this thread if it is `owner`'s; a denoiser used outside it is
    none of our business.
    """
    run = _INNERMOST.get()
    return run if run is not None and run.owner is owner else None


@contextlib.contextmanager
def running(run: Run | None) -> Iterator[None]:
    """Make `run` the innermost one; None hides the outer runs from a pipeline that has no plugins
    of its own.
    """
    token = _INNERMOST.set(run)
    try:
        yield
    finally:
        _INNERMOST.reset(token)


def in_any_run() -> bool:
    """Say whether this thread is inside some plugin-carrying pipeline call."""
    return _INNERMOST.get() is not None
