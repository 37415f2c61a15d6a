"""Kind "sampler": another scheduler, for the length of a run only.

The user's scheduler object is put back in every case, so `save_pretrained` never sees ours: a
third-party scheduler in model_index.json makes a checkpoint unloadable, and a native one would land
there unnoticed. The swap goes past `DiffusionPipeline.__setattr__`, which would write it into the
pipeline's config. A plugin that exchanges more than the scheduler has `attach(site)`.
"""

from typing import Any

from skipstep.plugins.errors import Incompatible
from skipstep.plugins.fingerprint import bound_call, mismatches, of_the_call
from skipstep.plugins.profile import Profile
from skipstep.plugins.run import Run
from skipstep.samplers.base import SamplerPlugin
from skipstep.samplers.solvers.calibrated import Calibrated

__all__ = ["EXCLUSIVE", "ORDER", "attach", "why_not"]

ORDER = 10
EXCLUSIVE = True


def why_not(plugin: SamplerPlugin, found: Profile) -> str | None:
    """Ask the plugin whether it suits this pipeline."""
    return plugin.why_not(found)


def attach(plugin: SamplerPlugin, site: Any) -> None:
    """Build the scheduler once from the pipeline's own, and swap it in around every run."""
    pipe = site.manager.pipe
    try:
        ours = plugin.build(pipe.scheduler)
    except ValueError as error:
        raise Incompatible(f"{plugin.name}: {error}") from error

    def swap_in(run: Run) -> None:
        chosen = for_this_call(plugin, run) if isinstance(plugin, Calibrated) else ours
        run.state["own scheduler"] = run.pipe.scheduler
        vars(run.pipe)["scheduler"] = chosen

    def put_back(run: Run) -> None:
        if "own scheduler" in run.state:
            vars(run.pipe)["scheduler"] = run.state.pop("own scheduler")

    if isinstance(plugin, Calibrated):
        site.default(num_inference_steps=plugin.solver.steps)
    site.on_begin(swap_in)
    site.on_end(put_back)
    attach_more = getattr(plugin, "attach", None)
    if attach_more is not None:
        attach_more(site)


def for_this_call(plugin: Calibrated, run: Run) -> Any:
    """Return a calibrated solver for the call's steps and guidance.

    Raises Incompatible where the file was made for something else and is to say so.
    """
    call = bound_call(run.pipe, run.arguments)
    steps = call.get("num_inference_steps")
    try:
        return plugin.for_call(
            run.pipe.scheduler,
            steps=steps if isinstance(steps, int) else None,
            guidance=of_the_call(call).get("guidance"),
            unlike=mismatches(plugin.made_for(), run.pipe),
        )
    except ValueError as error:
        raise Incompatible(f"{plugin.name}: {error}") from error
