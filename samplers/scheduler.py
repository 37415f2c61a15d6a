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
        """Return the named scheduler with the pipeline's own config and our overrides.

        A flow-matching pipeline's shift is carried over, and the new scheduler is told that the
        model predicts a flow. Raises ValueError where only one of the two knows flows.
        """
        cls = getattr(diffusers, self.scheduler)
        carried: dict[str, Any] = {}
        is_flow_match = self.scheduler.startswith("FlowMatch")
        if is_flow_match and not is_flow(scheduler):
            raise ValueError(
                f"scheduler={self.scheduler!r} walks along a flow and this pipeline's own "
                f"{type(scheduler).__name__} does not: use 'UniPCMultistepScheduler' or another "
                "scheduler with betas"
            )
        if is_flow(scheduler) and not is_flow_match:
            if "use_flow_sigmas" not in inspect.signature(cls).parameters:
                raise ValueError(
                    f"scheduler={self.scheduler!r} knows no flow sigmas and this pipeline's model "
                    "predicts a flow: use 'UniPCMultistepScheduler', 'DPMSolverMultistepScheduler' "
                    "or one of the FlowMatch schedulers"
                )
            shift = scheduler.config.get("shift", 1.0)
            carried = {
                "use_flow_sigmas": True,
                "prediction_type": "flow_prediction",
                "flow_shift": shift,
            }
        return cls.from_config(scheduler.config, **(carried | self.config))


def is_flow(scheduler: Any) -> bool:
    """Tell whether a scheduler walks along a flow: such schedulers have a shift and no betas."""
    return "shift" in scheduler.config and "beta_schedule" not in scheduler.config
