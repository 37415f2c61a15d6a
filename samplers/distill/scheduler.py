"""The scheduler of a student: its own nodes, in few steps, for any prediction type.

The step is that of walk.py, in the flow's coordinates x = y / (alpha + sigma), t = sigma / (alpha +
sigma); a flow model has alpha + sigma = 1. Times are floats: a student is asked exactly where it
was taught.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from skipstep.samplers.distill.flow import as_rows, vp_level, vp_velocity
from skipstep.samplers.distill.walk import renoise

__all__ = ["FewStepOutput", "FewStepScheduler"]


@dataclass
class FewStepOutput(BaseOutput):  # type: ignore[misc]
    """Hold the picture after a step and the clean one it points to."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class FewStepScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Walk through a student's nodes.

    Args:
        nodes: for each number of steps that was taught, the times from 1 to 0.
        prediction_type: "flow_prediction", "epsilon", "v_prediction" or "sample".
        gamma: how much noise is drawn anew after a step, see walk.py.
        alphas_cumprod: the schedule of a variance-preserving model; None for a flow.
        time_scale: what a flow model is given at t = 1.
    """

    order = 1
    _compatibles: list[str] = []

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers has no types
    def __init__(
        self,
        nodes: list[list[float]] = [[1.0, 0.75, 0.5, 0.25, 0.0]],  # noqa: B006
        prediction_type: str = "flow_prediction",
        gamma: float = 0.0,
        alphas_cumprod: list[float] | None = None,
        time_scale: float = 1000.0,
    ) -> None:
        self.nodes = {len(each) - 1: list(each) for each in nodes}
        self.alphas = None if alphas_cumprod is None else torch.tensor(alphas_cumprod)
        self.init_noise_sigma = 1.0
        self.adds_noise = gamma > 0
        self.begin_index: int | None = None
        self.step_index: int | None = None
        self.set_timesteps(next(iter(self.nodes)))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        **ignored: Any,
    ) -> None:
        """Take the nodes of this number of steps; schedules that a pipeline brings are not taken.

        Raises ValueError for a number that was not taught.
        """
        wanted = num_inference_steps or next(iter(self.nodes))
        if wanted not in self.nodes:
            known = " or ".join(str(n) for n in self.nodes)
            raise ValueError(
                f"num_inference_steps={wanted}: this student was taught {known} steps; leave the "
                f"number out or pass {known}"
            )
        self.num_inference_steps = wanted
        self.times = self.nodes[wanted]
        levels = torch.tensor(self.times, dtype=torch.float64)
        if self.alphas is None:
            self.timesteps = (levels[:-1] * self.config.time_scale).float().to(device)
            self.scales = torch.ones_like(levels)
        else:
            alpha, sigma, index = vp_level(self.alphas, levels)
            self.timesteps = index[:-1].float().to(device)
            beyond = levels > sigma / (alpha + sigma) + 1e-4
            self.scales = torch.where(beyond, sigma / levels.clamp(min=1e-9), alpha + sigma)
            self.scales[levels == 0] = 1.0
        self.sigmas = levels.float()
        self.step_index = self.begin_index = None

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the sample as it is."""
        return sample

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this step, as image-to-image pipelines do."""
        self.begin_index = begin_index

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        **ignored: Any,
    ) -> FewStepOutput | tuple[Tensor, Tensor]:
        """Go from this node to the next."""
        i = self._index(timestep) if self.step_index is None else self.step_index
        t, s = self.times[i], self.times[i + 1]
        x = sample.float() / float(self.scales[i])
        v = self._velocity(model_output.float(), x, i)
        lower = (1 - self.config.gamma) * s
        x_0, moved = x - t * v, x + (lower - t) * v
        if self.config.gamma > 0 and s > 0:
            from diffusers.utils.torch_utils import randn_tensor

            z = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            rows = torch.full((len(x),), 1.0, device=x.device)
            moved = renoise(moved, lower * rows, s * rows, z)
        self.step_index = i + 1
        previous = (moved * float(self.scales[i + 1])).to(sample.dtype)
        clean = x_0.to(sample.dtype)
        return FewStepOutput(previous, clean) if return_dict else (previous, clean)

    def _velocity(self, answer: Tensor, x: Tensor, i: int) -> Tensor:
        """Return v = eps - x_0 from the model's answer, as DenoiserBridge does."""
        kind = self.config.prediction_type
        if kind == "flow_prediction":
            return answer
        if self.alphas is None:
            raise ValueError(f"prediction_type={kind!r} needs alphas_cumprod")
        asked = torch.full((len(x),), self.times[i], dtype=torch.float64)
        alpha, sigma = (as_rows(each.to(x), x) for each in vp_level(self.alphas, asked)[:2])
        seen = x * float(self.scales[i]) / (alpha + sigma)
        return vp_velocity(kind, answer, seen, alpha, sigma)

    def _index(self, timestep: Any) -> int:
        if self.begin_index is not None:
            return self.begin_index
        return int((self.timesteps - float(timestep)).abs().argmin())

    def add_noise(self, original: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the sample noised to these timesteps."""
        rows = [self._index(each) for each in timesteps.flatten()]
        t = torch.tensor([self.times[i] for i in rows]).to(original)
        scale = torch.tensor([float(self.scales[i]) for i in rows]).to(original)
        t, scale = (each.reshape(-1, *[1] * (original.ndim - 1)) for each in (t, scale))
        return scale * ((1 - t) * original + t * noise)

    def __len__(self) -> int:
        return len(self.timesteps)
