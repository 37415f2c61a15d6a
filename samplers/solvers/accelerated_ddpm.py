"""Accelerated DDPM (Li, Huang, Efimov, Wei, Chi, Chen 2024, arXiv:2403.03852): a stochastic sampler
whose score is asked in the middle of the noise it adds.

  Y+ = Y_t + sqrt((1 - a_t) / 2) Z,   a_t = A_t / A_(t-1), A the products of the schedule
  Y_(t-1) = (Y+ + (1 - a_t) s_t(Y+) + sqrt((1 - a_t) / 2) Z+) / sqrt(a_t),   Z, Z+ ~ N(0, I)
One evaluation a step, as DDPM; the distribution's error falls as 1/T^2 where DDPM's falls as 1/T (a
test shows it on a Gaussian). Both are methods of many steps: below some 30, where 1 - a_t is no
small number, use a solver without noise (preset "accelerated" is the same authors').
Both noises between two evaluations are added at once, and the first one is in the start.
Differs from the paper: the bracket around Z+ is derived, because only with it do the variances
agree to second order; the last step adds no noise.
"""

import math
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor

from skipstep.samplers.base import SamplerPlugin
from skipstep.samplers.solvers.conversions import noised, to_kernel
from skipstep.samplers.solvers.nodes import nodes
from skipstep.samplers.solvers.paths import betas_of, vp_path
from skipstep.samplers.solvers.scheduler import SolverOutput
from skipstep.samplers.solvers.solver import path_config

__all__ = ["AcceleratedDDPM", "AcceleratedDDPMScheduler"]


class AcceleratedDDPMScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Walk down a schedule of betas with fresh noise before and after each evaluation.

    Args:
        prediction_type: "epsilon", "v_prediction" or "sample".
    """

    _compatibles = [each.name for each in KarrasDiffusionSchedulers]
    order = 1
    adds_noise = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        betas = betas_of(beta_schedule, beta_start, beta_end, num_train_timesteps, trained_betas)
        self.path = vp_path(betas, zero_snr=rescale_betas_zero_snr)
        assert self.path.table is not None
        table = torch.tensor(self.path.table)
        self.alphas_cumprod = (1 / (1 + table * table)).float()
        self.set_timesteps(num_train_timesteps)

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Place the steps evenly in time, from its end.

        Raises ValueError for fewer than one step.
        """
        if num_inference_steps < 1:
            raise ValueError(
                f"num_inference_steps={num_inference_steps} is not allowed: must be 1 or more"
            )
        self.num_inference_steps = num_inference_steps
        self.nodes = nodes(self.path, num_inference_steps)
        self.sigmas = torch.tensor(self.nodes, dtype=torch.float32)
        times = [self.path.time(s) for s in self.nodes[:-1]]
        self.timesteps = torch.tensor(times, dtype=torch.float32, device=device)
        products = [1 / (1 + s * s) for s in self.nodes]
        self.ratios = [a / b for a, b in zip(products, products[1:], strict=False)]
        self.init_noise_sigma = math.sqrt(1 + (1 - self.ratios[0]) / 2)
        self.step_index: int | None = None

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the sample as it is."""
        return sample

    def step(
        self,
        model_output: Float[Tensor, "b ..."],
        timestep: Any,
        sample: Float[Tensor, "b ..."],
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Go from Y+ of one step to Y+ of the next; the last step returns the picture.

        Raises ValueError after the last step.
        """
        i = 0 if self.step_index is None else self.step_index
        if i >= len(self.ratios):
            raise ValueError(f"all {len(self.ratios)} steps are done: call set_timesteps again")
        wide = torch.promote_types(sample.dtype, torch.float32)
        s, ratio, y = self.nodes[i], self.ratios[i], sample.to(wide)
        p, q = to_kernel("eps", self.path, s, self.config.prediction_type)
        score = -(p * y + q * model_output.to(wide)) / self.path.sigma(s)
        found = (y + (1 - ratio) * score) / math.sqrt(ratio)
        if i + 1 < len(self.ratios):
            # Z+ of this step over sqrt(a_t), and Z of the next.
            spread = math.sqrt((1 - ratio) / (2 * ratio) + (1 - self.ratios[i + 1]) / 2)
            z = randn_tensor(found.shape, generator=generator, device=found.device, dtype=wide)
            found = found + spread * z
        self.step_index = i + 1
        output = SolverOutput(found.to(sample.dtype))
        return output if return_dict else output.to_tuple()

    def add_noise(self, original: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return alpha x0 + sigma eps at each sample's network time."""
        levels = [self.path.at_time(float(t)) for t in timesteps.flatten()]
        return noised(self.path, original, noise, levels)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class AcceleratedDDPM(SamplerPlugin):
    """Swap in accelerated DDPM while the pipeline runs."""

    name: ClassVar[str] = "accelerated_ddpm"
    summary: ClassVar[str] = "Swaps in a stochastic sampler of second order, for many steps."
    paper: ClassVar[str] = "Accelerating Convergence of Score-Based Diffusion Models (2403.03852)"

    def build(self, scheduler: Any) -> AcceleratedDDPMScheduler:
        """Return the sampler on the pipeline's own betas.

        Raises ValueError for a path without betas.
        """
        config = path_config(scheduler)
        if config["prediction_type"] == "flow_prediction" or "sigma_data" in config:
            raise ValueError(
                f"it walks a schedule of betas and {type(scheduler).__name__} has none: use "
                "enable_plugin('solver') on a flow"
            )
        built: AcceleratedDDPMScheduler = AcceleratedDDPMScheduler(**config)
        return built
