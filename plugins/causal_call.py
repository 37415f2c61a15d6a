"""A causal student in a pipeline: the roll-out happens inside one call of the denoiser.

A pipeline walks all frames together, step by step; a causal student makes chunk after chunk, each
in all its steps. So the pipeline takes a single step, and its one call of the denoiser is answered
with the flow that ends at the finished clip.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skipstep.plugins.errors import Incompatible
from skipstep.plugins.profile import Denoiser, parameters_of
from skipstep.plugins.run import TIMESTEP_NAMES, Run
from skipstep.samplers.distill.catalog import load_recipe
from skipstep.samplers.distill.causal import make_causal
from skipstep.samplers.distill.flow import Condition
from skipstep.samplers.distill.networks import Flow
from skipstep.samplers.distill.recipes.self_forcing import SelfForcing
from skipstep.samplers.distill.student import Student

__all__ = ["attach_causal"]

OUTSIDE_ALL = -1
UNDO = "causal: what puts the layers back"


@dataclass(frozen=True)
class Asked:
    """A bridge to a denoiser inside a call of its own: the call's arguments, other x and t."""

    call_next: Callable[..., Any]
    named: dict[str, Any]
    sample: str
    time: str

    def velocity(
        self,
        module: nn.Module,
        x: Tensor,
        t: Tensor,
        condition: Condition,
        s: Tensor | None = None,
    ) -> Tensor:
        """Return the denoiser's flow; the call's time is that of t = 1."""
        time = t * self.named[self.time].flatten()[0]
        answer = self.call_next(**{**self.named, self.sample: x, self.time: time})
        v: Tensor = answer if isinstance(answer, Tensor) else answer[0]
        return v


def attach_causal(site: Any, denoiser: Denoiser, student: Student) -> None:
    """Let the denoiser remember during every run, and answer its one call with a roll-out."""
    name, options = student.recipe["name"], student.recipe.get("options", {})
    recipe = load_recipe(name, options)
    if not isinstance(recipe, SelfForcing):
        raise Incompatible(f"few_step: recipe {name} makes no causal student")
    names = parameters_of(denoiser.inner)

    def begin(run: Run) -> None:
        try:
            run.state[UNDO] = make_causal(denoiser.inner)
        except ValueError as error:
            raise Incompatible(f"few_step: {error}") from None

    def end(run: Run) -> None:
        run.state.pop(UNDO, lambda: None)()

    def ask(call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        run = site.run()
        if run is None:
            return call_next(*args, **kwargs)
        named = dict(zip(names, args, strict=False)) | kwargs
        time = next(each for each in TIMESTEP_NAMES if each in named)
        x = named[names[0]]
        seed = run.arguments.get("generator")
        generator = seed if isinstance(seed, torch.Generator) else None
        flow = Flow(denoiser.inner, Asked(call_next, named, names[0], time))
        v = x - recipe.sample(flow, x, recipe.steps, {}, generator)
        if not named.get("return_dict", True):
            return (v,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=v)

    site.on_begin(begin)
    site.on_end(end)
    site.wrap(denoiser.module, ask, OUTSIDE_ALL)
