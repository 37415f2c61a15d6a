"""ResShift (Yue et al. 2023, arXiv:2307.12348): restore a picture by shifting its residual away, in
four steps.

  q(x_t | x_0, y) = N(x_0 + eta_t (y - x_0), kappa^2 eta_t I)   (1)
  sqrt(eta_t) = sqrt(eta_1) b^(beta_t),   beta_t = ((t - 1) / (T - 1))^p (T - 1)   (2)
  b = exp(ln(sqrt(eta_T) / sqrt(eta_1)) / (T - 1))   (3)
  x_(t-1) ~ N((eta_(t-1) / eta_t) x_t + (a_t / eta_t) x_0, kappa^2 (eta_(t-1) / eta_t) a_t I)   (4)
y is the degraded picture, a_t = eta_t - eta_(t-1); it starts at x_T = y + kappa sqrt(eta_T) n. The
network is given x_t / sqrt(kappa^2 eta_t + 1) and y, and says x_0. Only for networks that were
trained so: no text-to-image pipeline is one, so this is a scheduler and no plugin.
Differs from the authors' code: sqrt(eta_1) = min(0.2 / kappa, 0.2) is an option, `least`.
"""

import math
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from skipstep.samplers.solvers.scheduler import SolverOutput

__all__ = ["ResShiftScheduler", "shift_levels"]


def shift_levels(count: int, *, least: float, most: float, power: float) -> list[float]:
    """Return eta_1 ... eta_T; `least` and `most` are the square roots of the ends.

    >>> [round(eta, 4) for eta in shift_levels(2, least=0.1, most=0.9, power=0.3)]
    [0.01, 0.81]
    """
    if count == 1:
        return [most * most]
    b = math.exp(math.log(most / least) / (count - 1))
    beta = [(t / (count - 1)) ** power * (count - 1) for t in range(count)]
    return [(least * b**each) ** 2 for each in beta]


class ResShiftScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Walk from a degraded picture to a clean one.

    Args:
        steps: T, the steps that the network was trained with.
        kappa: how much noise is added beside the shift.
        least: sqrt(eta_1). most: sqrt(eta_T). power: p of (2).
    """

    order = 1
    _compatibles: list[str] = []
    adds_noise = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        steps: int = 4,
        kappa: float = 2.0,
        least: float = 0.1,
        most: float = 0.99,
        power: float = 0.3,
    ) -> None:
        self.levels = shift_levels(steps, least=least, most=most, power=power)
        self.init_noise_sigma = 1.0
        self.set_timesteps(steps)

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Begin again; the steps are those of training.

        Raises ValueError for another number.
        """
        if num_inference_steps != self.config.steps:
            raise ValueError(
                f"num_inference_steps={num_inference_steps}: this network was trained with "
                f"{self.config.steps}, pass that"
            )
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.arange(num_inference_steps - 1, -1, -1, device=device)

    def start(
        self, degraded: Float[Tensor, "b ..."], noise: Float[Tensor, "b ..."]
    ) -> Float[Tensor, "b ..."]:
        """Return x_T of a degraded picture."""
        x: Tensor = degraded + self.config.kappa * math.sqrt(self.levels[-1]) * noise
        return x

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """Return the sample at unit variance."""
        return sample / math.sqrt(self.config.kappa**2 * self.levels[int(timestep)] + 1)

    def step(
        self,
        model_output: Float[Tensor, "b ..."],
        timestep: Any,
        sample: Float[Tensor, "b ..."],
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Draw from (4); `model_output` is x_0."""
        t = int(timestep)
        found = model_output
        if t > 0:
            eta, before = self.levels[t], self.levels[t - 1]
            a = eta - before
            z = randn_tensor(
                sample.shape, generator=generator, device=sample.device, dtype=sample.dtype
            )
            spread = self.config.kappa * math.sqrt(before / eta * a)
            found = before / eta * sample + a / eta * model_output + spread * z
        output = SolverOutput(found, model_output)
        return output if return_dict else output.to_tuple()

    def add_noise(
        self,
        original: Float[Tensor, "b ..."],
        noise: Float[Tensor, "b ..."],
        timesteps: Tensor,
        degraded: Float[Tensor, "b ..."],
    ) -> Float[Tensor, "b ..."]:
        """Return x_t of (1), which training asks for."""
        levels = [self.levels[int(t)] for t in timesteps]
        eta = torch.tensor(levels, dtype=original.dtype, device=original.device)
        eta = eta.reshape(-1, *[1] * (original.ndim - 1))
        mean = original + eta * (degraded - original)
        x: Tensor = mean + self.config.kappa * eta.sqrt() * noise
        return x

    def __len__(self) -> int:
        return int(self.config.steps)
