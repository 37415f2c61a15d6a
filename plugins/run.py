"""One pipeline call: which step it is at, which guidance branch is being computed, and all state
that dies with it.

Pipelines do not tell. A denoiser call that follows a `scheduler.step` starts a new step, however
many schedulers stepped in between (copies made during the run count too); the branch (cond, uncond,
...) is the k-th call of a denoiser in its step. Where no scheduler steps at all, a changed timestep
argument starts a new step (this costs one host sync a call, and only those pipelines pay it).
"""

import contextlib
import functools
import weakref
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
        self.keeps_prediction = False
        self.prediction: Any = None
        self._is_tapped = False
        self._is_watched = False
        self._has_stepped = False
        self._calls: dict[int, int] = {}
        self._open: dict[int, tuple[int, int]] = {}
        self._timestep: float | torch.Tensor | None = None
        self._count: int | None = None
        self._times: list[tuple[int, int]] | None = None

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

    def time_of(self, index: int) -> tuple[int, int, int]:
        """Return (time, number of times, visit) of a scheduler step.

        A second-order scheduler may step twice from one timestep: that is one time of the run,
        visited twice. Everywhere else each step is a time of its own.
        """
        if self._times is None:
            self._times = self._find_times()
        if index < len(self._times):
            time, visit = self._times[index]
            return time, self._times[-1][0] + 1, visit
        return index, self.count, 0

    def _find_times(self) -> list[tuple[int, int]]:
        scheduler = getattr(self.pipe, "scheduler", None)
        timesteps = getattr(scheduler, "timesteps", None)
        if timesteps is None or getattr(scheduler, "order", 1) < 2:
            return []
        values = [float(t) for t in timesteps][-self.count :]
        found = [(0, 0)]
        for before, now in zip(values, values[1:], strict=False):
            time, visit = found[-1]
            found.append((time, visit + 1) if now == before else (time + 1, 0))
        return found if self.count == len(values) else []

    def enter(self, denoiser: object, arguments: dict[str, Any]) -> tuple[int, int]:
        """Note a denoiser call; return (step index, guidance branch)."""
        if id(denoiser) in self._open:
            return self._open[id(denoiser)]
        self._is_watched = True
        if self._has_stepped or (not self._is_tapped and self._is_new_timestep(arguments)):
            self.step += 1
            self._has_stepped = False
            self._calls.clear()
        branch = self._calls.get(id(denoiser), 0)
        self._calls[id(denoiser)] = branch + 1
        return self.step, branch

    @contextlib.contextmanager
    def inside(self, denoiser: object, arguments: dict[str, Any]) -> Iterator[None]:
        """Note a denoiser call while it lasts; who enters it meanwhile does not count it again."""
        if id(denoiser) in self._open:
            yield
            return
        self._open[id(denoiser)] = self.enter(denoiser, arguments)
        try:
            yield
        finally:
            del self._open[id(denoiser)]

    def advance(self, prediction: Any = None) -> None:
        """Note that a scheduler stepped, and on what if a plugin wants to know; what timesteps
        suggested before that was no step.
        """
        self.prediction = prediction if self.keeps_prediction else None
        if not self._is_tapped:
            self._is_tapped, self.step = True, 0
        elif self._has_stepped and not self._is_watched:
            # Where no plugin watches the denoiser, nothing but the next step ends a step.
            self.step += 1
        self._has_stepped = True

    @property
    def finished(self) -> int:
        """Return how many steps are behind us."""
        is_done = self._has_stepped or (not self._is_tapped and self._timestep is not None)
        return self.step + is_done

    def _is_new_timestep(self, arguments: dict[str, Any]) -> bool:
        value = next((arguments[n] for n in TIMESTEP_NAMES if n in arguments), None)
        if isinstance(value, torch.Tensor):
            # Read only when there is another one to compare it with: reading waits for the device.
            value = value.flatten()[:1].clone() if value.numel() else None
        if not isinstance(value, int | float | torch.Tensor):
            return False
        before, self._timestep = self._timestep, value
        return before is not None and float(before) != float(value)


class StepTap:
    """Stand in for `scheduler.step` during a run and count; a deepcopy of the scheduler has its own
    tap, a pickle none. Once the run is gone a tap only steps.
    """

    def __init__(self, scheduler: Any, run: Run) -> None:
        self.scheduler = scheduler
        self.run = weakref.ref(run)
        step = scheduler.step
        # A nested call of the same pipeline is no step of the outer run.
        self.step: Callable[..., Any] = step.step if isinstance(step, StepTap) else step
        functools.update_wrapper(self, self.step)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.step(*args, **kwargs)
        run = self.run()
        if run is not None:
            run.advance(args[0] if args else kwargs.get("model_output"))
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self.scheduler))
        run = self.run()
        return self.step if copied is None or run is None else StepTap(copied, run)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.scheduler, "step")

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
