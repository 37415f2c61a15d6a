"""The solvers of this package in any pipeline, for the run only:
`enable_plugin("solver", preset="dpm++2m", spacing="log_shift")`.

The path (betas, flow, EDM), the prediction type and the flow shift are the pipeline's own.
"""

from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from skipstep.samplers.base import SamplerPlugin
from skipstep.samplers.solvers.nodes import Spacing
from skipstep.samplers.solvers.presets import PRESETS, PresetName
from skipstep.samplers.solvers.scheduler import ExponentialAdamsScheduler

__all__ = ["Solver", "path_config"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Solver(SamplerPlugin):
    """Swap in a member of the exponential Adams family while the pipeline runs."""

    name: ClassVar[str] = "solver"
    summary: ClassVar[str] = "Swaps in an exponential Adams solver, for the run only."
    paper: ClassVar[str] = ""

    preset: Annotated[PresetName, Field(description="published update (samplers.md)")] = "unipc"
    spacing: Annotated[Spacing, Field(description="where the network is asked")] = "time"
    offset: Annotated[float, Field(gt=0, le=10, description="c of spacing log_shift")] = 0.1
    shift: Annotated[
        float | None,
        Field(gt=0, le=100, description="shift of flow time; None is the pipeline's own"),
    ] = None
    noise_correction: Annotated[
        bool, Field(description="take the start for the first step's noise (Imagine Flash)")
    ] = False

    def build(self, scheduler: Any) -> ExponentialAdamsScheduler:
        """Return the solver on the pipeline's own path.

        Raises ValueError for a path it does not know, and for a shift where there is no flow.
        """
        config = path_config(scheduler)
        if self.shift is not None:
            if config.get("prediction_type") != "flow_prediction":
                raise ValueError(
                    f"shift={self.shift:g} moves flow time and this pipeline has betas: leave it "
                    "out"
                )
            config |= {"shift": self.shift, "use_dynamic_shifting": False}
        built: ExponentialAdamsScheduler = ExponentialAdamsScheduler(
            **config,
            preset=self.preset,
            spacing=self.spacing,
            spacing_offset=self.offset,
            noise_correction=self.noise_correction,
        )
        return built


def path_config(scheduler: Any) -> dict[str, Any]:
    """Return what a pipeline's scheduler says of its path, in this package's words.

    Raises ValueError for a scheduler whose path is none of the three.
    """
    config = dict(scheduler.config)
    found: dict[str, Any] = {"num_train_timesteps": int(config.get("num_train_timesteps", 1000))}
    is_flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if is_flow or ("shift" in config and "beta_schedule" not in config):
        shift = config.get("flow_shift") if is_flow else None
        return found | {
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "shift": float(config.get("shift", 1.0) if shift is None else shift),
            "use_dynamic_shifting": bool(config.get("use_dynamic_shifting", False)),
        }
    prediction = str(config.get("prediction_type", "epsilon"))
    if "sigma_data" in config and "sigma_min" in config:
        edm = ("sigma_data", "sigma_min", "sigma_max")
        return found | {"prediction_type": prediction} | {name: config[name] for name in edm}
    products = getattr(scheduler, "alphas_cumprod", None)
    if products is None:
        raise ValueError(
            f"{type(scheduler).__name__} has neither betas nor a flow nor sigma_data, so its path "
            f"is unknown (presets: {', '.join(PRESETS)})"
        )
    found["prediction_type"] = prediction
    if config.get("snr_shift_scale") in (None, 1, 1.0) and "beta_schedule" in config:
        names = ("beta_start", "beta_end", "beta_schedule", "rescale_betas_zero_snr")
        found |= {name: config[name] for name in names if name in config}
        if config.get("trained_betas") is not None:
            found["trained_betas"] = [float(each) for each in config["trained_betas"]]
        return found
    # A table that its config does not explain, such as CogVideoX's shifted one.
    table = products.double().cpu().numpy()
    ratios = table / np.concatenate([[1.0], table[:-1]])
    return found | {"trained_betas": (1 - ratios).tolist()}
