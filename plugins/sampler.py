"""Kind "sampler": another scheduler, for the length of a run only.

The user's scheduler object is put back in every case, so `save_pretrained` never sees ours: a
third-party scheduler in model_index.json makes a checkpoint unloadable, and a native one would land
there unnoticed. The swap goes past `DiffusionPipeline.__setattr__`, which would write it into the
pipeline's config. A plugin that exchanges more than the scheduler has `attach(site)`.
"""

from typing import Any

from skipstep.plugins.errors import Incompatible
from skipstep.plugins.profile import Profile
from skipstep.plugins.run import Run
from skipstep.samplers.base import SamplerPlugin

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
        run.state["own scheduler"] = run.pipe.scheduler
        vars(run.pipe)["scheduler"] = ours

    def put_back(run: Run) -> None:
        if "own scheduler" in run.state:
            vars(run.pipe)["scheduler"] = run.state.pop("own scheduler")

    site.on_begin(swap_in)
    site.on_end(put_back)
    attach_more = getattr(plugin, "attach", None)
    if attach_more is not None:
        attach_more(site)
