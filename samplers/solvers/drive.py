"""Ask a pipeline's guided network at chosen times and say where it goes in between, or watch where
the pipeline's own scheduler goes.

Nothing tells what a pipeline does around its network: prompts, guidance, packing. It always asks
its scheduler for timesteps and for the next sample, though, so a scheduler that hands out our times
and calls our function is a way into any of them.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from skipstep.samplers.solvers.scheduler import ExponentialAdamsScheduler, SolverOutput

__all__ = ["DrivingScheduler", "watched"]


class DrivingScheduler:
    """Stand in for a pipeline's scheduler: `times` are handed out, `advance(i, x, output)` is asked
    for the next x. Everything else is `solver`'s. `last` is the last x.
    """

    def __init__(
        self,
        solver: ExponentialAdamsScheduler,
        times: Sequence[float],
        advance: Callable[[int, Tensor, Tensor], Tensor],
    ) -> None:
        self.solver = solver
        self.times = list(times)
        self.advance = advance
        self.last: Tensor | None = None
        self.done = 0

    def __getattr__(self, name: str) -> Any:
        if name == "solver":
            raise AttributeError(name)
        return getattr(self.solver, name)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        *,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Place the nodes at the chosen times, whatever the pipeline asks for."""
        self.solver.set_timesteps(timesteps=self.times, device=device)
        self.done, self.last = 0, None

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the sample as the network wants it at the evaluation that is next."""
        return self.solver.scaled(sample, self.done)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        return_dict: bool = True,
        **unused: Any,
    ) -> Any:
        """Ask where to go."""
        found = self.advance(self.done, sample.float(), model_output.float())
        self.done, self.last = self.done + 1, found
        output = SolverOutput(found.to(sample.dtype), found.to(sample.dtype))
        return output if return_dict else output.to_tuple()


def watched(scheduler: Any, see: Callable[[float, Tensor, Tensor, Tensor], None]) -> Any:
    """Return a copy of a scheduler that tells `see` of every step: time, x, output, the next x."""
    copied = copy.deepcopy(scheduler)
    step = copied.step

    @functools.wraps(step)
    def seen(model_output: Tensor, timestep: Any, sample: Tensor, *rest: Any, **named: Any) -> Any:
        found = step(model_output, timestep, sample, *rest, **named)
        following = found[0] if isinstance(found, tuple) else found.prev_sample
        see(float(timestep), sample.float(), model_output.float(), following.float())
        return found

    vars(copied)["step"] = seen
    return copied
