"""Any of diffusers' own schedulers, for the run only: `enable_plugin("scheduler",
scheduler="UniPCMultistepScheduler")`.

The new scheduler is made from the config of the pipeline's own (`from_config`), so trained betas,
the prediction type and the flow shift carry over; `config` overrides single entries.
"""

import inspect
from typing import Annotated, Any, ClassVar

import diffusers
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from skipstep.samplers.base import SamplerPlugin

__all__ = ["Scheduler"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Scheduler(SamplerPlugin):
    """Swap in a diffusers scheduler by class name while the pipeline runs."""

    name: ClassVar[str] = "scheduler"
    summary: ClassVar[str] = "Swaps in any diffusers scheduler, for the run only."

    scheduler: Annotated[str, Field(description="class name of a diffusers scheduler")] = (
        "UniPCMultistepScheduler"
    )
    config: Annotated[dict[str, Any], Field(description="config entries to override")] = Field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        cls = getattr(diffusers, self.scheduler, None)
        if not (inspect.isclass(cls) and hasattr(cls, "set_timesteps")):
            raise ValueError(
                f"scheduler={self.scheduler!r} is not a scheduler class of diffusers "
                f"{diffusers.__version__}: "
                "use a class name such as 'UniPCMultistepScheduler' or "
                "'DPMSolverMultistepScheduler'"
            )

    def build(self, scheduler: Any) -> Any:
        """Return the named scheduler with the pipeline's own config and our overrides."""
        return getattr(diffusers, self.scheduler).from_config(scheduler.config, **self.config)
