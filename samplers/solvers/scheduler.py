"""The diffusers scheduler of the exponential Adams family, for every pipeline and path.

All coefficients are made in float64 by `set_timesteps`; a step is then a conversion and one linear
combination in float32, without a look at the device. Timesteps are floats: diffusers' multistep
schedulers round them to integers, which costs them an error floor.

`set_timesteps` takes what pipelines pass: a number of steps, own `timesteps` or `sigmas`, and `mu`.
The list linspace(1, 1/N, N) that flow pipelines always pass is no opinion, and the spacing asked
for here is used. A run that begins later (image to image) starts its history there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import (
    KarrasDiffusionSchedulers,
    SchedulerMixin,
    SchedulerOutput,
)
from jaxtyping import Float, Float64
from numpy import ndarray
from torch import Tensor

from skipstep.samplers.solvers.adams import Formula, Kernel, Move, plan
from skipstep.samplers.solvers.conversions import corrected_start, noised, to_kernel
from skipstep.samplers.solvers.nodes import Spacing, nodes, shifted
from skipstep.samplers.solvers.paths import Path, betas_of, edm_path, flow_path, vp_path
from skipstep.samplers.solvers.presets import formula_of
from skipstep.samplers.solvers.sums import combined

__all__ = ["ExponentialAdamsScheduler", "SolverOutput", "Table", "path_of"]

Numbers = Sequence[float] | ndarray | Tensor
FLOWS = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]


@dataclass
class SolverOutput(SchedulerOutput):  # type: ignore[misc]
    """Hold the next sample, and the picture that the network sees where it costs nothing to say."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


@dataclass(frozen=True)
class Table:
    """Hold a calibrated solver's numbers: N + 1 nodes of s, and per step a weight of x and of the
    newest values of u. `times` is what the network is told, if that is not the nodes' own time.
    """

    kernel: Kernel
    nodes: Sequence[float]
    rows: Sequence[Sequence[float]]
    times: Sequence[float] | None = None

    def moves(self) -> list[Move]:
        """Return the table as moves."""
        return [
            Move(s, row[0], tuple(row[1:])) for s, row in zip(self.nodes, self.rows, strict=False)
        ]


class ExponentialAdamsScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Solve the sampling equation with one member of the exponential Adams family.

    Args:
        preset: a published member (presets.py); `kernel`, `variable`, `solver_order`, `corrector`,
            `rule` and `start_up` replace single choices of it.
        spacing: where the network is asked (nodes.py); `spacing_offset` is log_shift's c.
        prediction_type: what the network returns. "flow_prediction" or `use_flow_sigmas` makes the
            path a flow, `sigma_data` makes it EDM's; else the betas say it.
        shift: of flow time; with `use_dynamic_shifting` it is exp(mu) of the pipeline.
        noise_correction: take the first step's noise to be the start itself (Kohler et al. 2024,
            arXiv:2405.05224): free, for networks whose last training time is not noise alone.
        table: a calibrated solver's `Table` as a dict; its number of steps replaces the preset.
    """

    _compatibles = [each.name for each in KarrasDiffusionSchedulers] + FLOWS
    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        use_flow_sigmas: bool = False,
        rescale_betas_zero_snr: bool = False,
        sigma_data: float | None = None,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        preset: str = "unipc",
        kernel: str | None = None,
        variable: str | None = None,
        solver_order: int | None = None,
        corrector: bool | None = None,
        rule: str | None = None,
        start_up: str | None = None,
        spacing: Spacing = "time",
        spacing_offset: float = 0.1,
        noise_correction: bool = False,
        table: dict[str, Any] | None = None,
    ) -> None:
        self.path = path_of(self.config)
        if self.path.kind == "vp":
            betas = betas_of(
                beta_schedule, beta_start, beta_end, num_train_timesteps, trained_betas
            )
            self.betas = torch.tensor(betas, dtype=torch.float32)
            assert self.path.table is not None
            products = 1 / (1 + np.square(self.path.table))
            self.alphas_cumprod = torch.tensor(products, dtype=torch.float32)
        self.formula = chosen_formula(self.config, self.path)
        self.table = None if table is None else Table(**table)
        most = self.path.most
        self.init_noise_sigma = math.hypot(most, 1.0) if self.path.kind == "edm" else 1.0
        self.num_inference_steps: int | None = None
        self._begin_index: int | None = None
        # Every training step, as diffusers' schedulers show before they are told a number of steps.
        self._show([(s, self.path.time(s)) for s in nodes(self.path, num_train_timesteps)[:-1]])
        self._moves: list[Move] = []

    @property
    def step_index(self) -> int | None:
        """Return the number of the next evaluation, None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Return the evaluation that the run begins with, if a pipeline set it."""
        return self._begin_index

    @property
    def nodes(self) -> list[float]:
        """Return s of every evaluation."""
        return [move.s for move in self._moves]

    def corrected(self, sample: Tensor) -> Tensor:
        """Return the state of the evaluation just made as the corrector left it.

        `sample` is what that evaluation's step was given.
        """
        correction = self._moves[(self._step_index or 1) - 1].correction
        return combined(1.0, sample, correction, self._memory) if correction else sample

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at an evaluation that is not the first, as image-to-image pipelines do."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        *,
        sigmas: Numbers | None = None,
        mu: float | None = None,
        timesteps: Numbers | None = None,
    ) -> None:
        """Place the nodes and make every coefficient.

        Args:
            sigmas: the path's own: t on a flow (it is shifted, as diffusers does), s elsewhere.
            mu: exp(mu) is the shift where the config asks for dynamic shifting.
            timesteps: network times.

        Raises ValueError if none or more than one of the lists says where to ask.
        """
        given = [
            np.asarray(each, dtype=np.float64) for each in (sigmas, timesteps) if each is not None
        ]
        if len(given) > 1:
            raise ValueError("set_timesteps was given sigmas and timesteps: give one of them")
        if not given and num_inference_steps is None:
            raise ValueError("set_timesteps was given nothing: give num_inference_steps")
        count = len(given[0]) if given else int(num_inference_steps or 0)
        if count < 1:
            raise ValueError(f"num_inference_steps={count} is not allowed: must be 1 or more")
        shift = math.exp(mu) if self.config.use_dynamic_shifting and mu is not None else None
        shift = self.config.shift if shift is None else shift
        if timesteps is not None:
            placed = [*(self.path.at_time(float(t)) for t in timesteps), 0.0]
        elif given and not is_no_opinion(self.path, given[0]):
            placed = [*own_sigmas(self.path, given[0], shift), 0.0]
        elif self.table is not None and count == len(self.table.rows):
            placed = list(self.table.nodes)
        else:
            offset = self.config.spacing_offset
            placed = nodes(self.path, count, self.config.spacing, shift=shift, offset=offset)
        if any(b >= a for a, b in zip(placed, placed[1:], strict=False)):
            raise ValueError(
                f"the noise must fall from step to step, and {count} steps were given "
                f"s = {', '.join(f'{s:.3g}' for s in placed[:8])}, ...: use fewer steps or another "
                "spacing"
            )
        self.num_inference_steps = count
        self._begin_index = None
        self._place(placed, device)

    def _place(self, placed: list[float], device: str | torch.device | None) -> None:
        """Keep the nodes and the moves between them; forget the last run."""
        self._nodes = placed
        self._moves = self._plan(0)
        self._prepare()
        times = [self.path.time(move.s) for move in self._moves]
        if self.table is not None and self.table.times and placed == list(self.table.nodes):
            times = list(self.table.times)
        self._show([(m.s, t) for m, t in zip(self._moves, times, strict=True)], device)

    def _show(
        self, asked: list[tuple[float, float]], device: str | torch.device | None = None
    ) -> None:
        """Publish (s, network time) of every evaluation under diffusers' names."""
        self.timesteps = torch.tensor([t for _, t in asked], dtype=torch.float32, device=device)
        levels = [self.path.sigma(s) if self.path.kind == "flow" else s for s, _ in asked]
        self.sigmas = torch.tensor([*levels, 0.0], dtype=torch.float32)
        self._step_index: int | None = None
        self._memory: list[Tensor] = []
        self._base: Tensor | None = None

    def _plan(self, begin: int) -> list[Move]:
        """Return the moves of a run that begins at node `begin`."""
        placed = self._nodes[begin:]
        if self.table is not None and begin == 0 and placed == list(self.table.nodes):
            self._kernel: Kernel = self.table.kernel
            moves = self.table.moves()
        else:
            self._kernel = self.formula.kernel
            moves = plan(self.formula, self.path, placed)
        if self.config.noise_correction and begin == 0:
            moves[0] = corrected_start(self._kernel, self.path, placed[0], placed[1])
        return moves

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the sample as the network wants it: EDM networks want unit variance."""
        if self.path.kind != "edm":
            return sample
        if self._step_index is None:
            self._start(timestep)
        return self.scaled(sample, self._step_index or 0)

    def scaled(self, sample: Tensor, index: int) -> Tensor:
        """Return the sample as the network wants it at evaluation `index`."""
        if self.path.kind != "edm":
            return sample
        return sample / math.hypot(self._moves[index].s, self.config.sigma_data)

    def step(
        self,
        model_output: Float[Tensor, "b ..."],
        timestep: Any,
        sample: Float[Tensor, "b ..."],
        return_dict: bool = True,
        **unused: Any,
    ) -> Any:
        """Take a step, equation (2), after the corrector if there is one.

        Returns a `SolverOutput`, or the tuple of its items. Raises ValueError before set_timesteps
        and after the last step.
        """
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps first: this scheduler does not know its steps")
        if self._step_index is None:
            self._start(timestep)
        index = self._step_index or 0
        if index >= len(self._moves):
            raise ValueError(f"all {len(self._moves)} steps are done: call set_timesteps again")
        move, (p, q) = self._moves[index], self._conversions[index]
        wide = torch.promote_types(sample.dtype, torch.float32)
        x, output = sample.to(wide), model_output.to(wide)
        if self._longest == 1 and self._base is None:
            # Nothing remembers u, so it need not be written down: x' is one sum of x and output.
            w = move.weights[0]
            found = combined(move.anchor + w * p, x, (w * q,), (output,))
            return self._stepped(found, None, index, sample.dtype, return_dict)
        self._memory.insert(0, combined(p, x, (q,), (output,)))
        base = x if self._base is None else self._base
        found = combined(move.anchor, base, move.weights, self._memory)
        picture = self._memory[0] if self._kernel == "x0" else None
        self._base = None if move.ends else base
        if move.ends:
            del self._memory[: move.forget]
            del self._memory[self._longest :]
        return self._stepped(found, picture, index, sample.dtype, return_dict)

    def _stepped(
        self,
        found: Tensor,
        picture: Tensor | None,
        index: int,
        dtype: torch.dtype,
        return_dict: bool,
    ) -> Any:
        """Count the evaluation and return its outcome in the sample's type."""
        self._step_index = index + 1
        if picture is None and index + 1 == len(self._moves):
            picture = found
        output = SolverOutput(found.to(dtype), None if picture is None else picture.to(dtype))
        return output if return_dict else output.to_tuple()

    def _start(self, timestep: Any) -> None:
        """Find the first evaluation of a run; one that begins later has no history."""
        begin = self._begin_index
        if begin is None:
            begin = self.index_for_timestep(timestep)
        if begin > 0:
            if self.formula.start_up != "none":
                raise ValueError(
                    f"start_up={self.formula.start_up!r} needs the first step and this run begins "
                    f"at evaluation {begin}: use start_up='none' to change a picture"
                )
            self._moves = self._moves[:begin] + self._plan(begin)
        self._prepare()
        self._step_index = begin

    def _prepare(self) -> None:
        """Make each evaluation's conversion to the kernel's u, and the memory's length."""
        kind = self.config.prediction_type
        data = self.config.sigma_data
        self._conversions = [
            to_kernel(self._kernel, self.path, move.s, kind, data) for move in self._moves
        ]
        self._longest = max(len(move.weights) for move in self._moves)

    def index_for_timestep(
        self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None
    ) -> int:
        """Return the evaluation nearest to a timestep; the first of several equal ones."""
        places = self.timesteps if schedule_timesteps is None else schedule_timesteps
        distance = (places.cpu().double() - float(timestep)).abs()
        return int(distance.argmin())

    def add_noise(
        self,
        original_samples: Float[Tensor, "b ..."],
        noise: Float[Tensor, "b ..."],
        timesteps: Tensor,
    ) -> Float[Tensor, "b ..."]:
        """Return alpha x0 + sigma eps at each sample's network time."""
        levels = [self._s_at(float(t)) for t in timesteps.flatten()]
        return noised(self.path, original_samples, noise, levels)

    def scale_noise(
        self, sample: Float[Tensor, "b ..."], timestep: Tensor, noise: Float[Tensor, "b ..."]
    ) -> Float[Tensor, "b ..."]:
        """Return `add_noise` under the name and argument order of flow pipelines."""
        return self.add_noise(sample, noise, timestep)

    def _s_at(self, time: float) -> float:
        """Return s at a network time; a planned time means its node, whatever it is called."""
        if not self._moves:
            return self.path.at_time(time)
        index = self.index_for_timestep(time)
        is_planned = math.isclose(float(self.timesteps[index]), time, rel_tol=1e-6, abs_tol=1e-6)
        return self._moves[index].s if is_planned else self.path.at_time(time)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


def path_of(config: Any) -> Path:
    """Return the path that a scheduler's config describes."""
    if config.prediction_type == "flow_prediction" or config.use_flow_sigmas:
        return flow_path(config.num_train_timesteps)
    if config.sigma_data is not None:
        return edm_path(config.sigma_min, config.sigma_max)
    betas = betas_of(
        config.beta_schedule,
        config.beta_start,
        config.beta_end,
        config.num_train_timesteps,
        config.trained_betas,
    )
    return vp_path(betas, zero_snr=config.rescale_betas_zero_snr)


def chosen_formula(config: Any, path: Path) -> Formula:
    """Return the preset's formula with the config's own choices in it."""
    choices = {
        "kernel": config.kernel,
        "variable": config.variable,
        "order": config.solver_order,
        "corrector": config.corrector,
        "rule": config.rule,
        "start_up": config.start_up,
    }
    given = {name: value for name, value in choices.items() if value is not None}
    return replace(formula_of(config.preset, path.kind), **given)


def is_no_opinion(path: Path, sigmas: Float64[ndarray, " n"]) -> bool:
    """Tell whether a flow pipeline's sigmas are the list that it passes when nobody chose one."""
    plain = np.linspace(1.0, 1 / len(sigmas), len(sigmas))
    return path.kind == "flow" and bool(np.allclose(sigmas, plain, atol=1e-6))


def own_sigmas(path: Path, sigmas: Float64[ndarray, " n"], shift: float) -> list[float]:
    """Return s of sigmas that someone chose; a 0 at their end is the end that is there anyway."""
    kept = [float(each) for each in sigmas if each > 0]
    if path.kind == "flow":
        return [path.at_time(path.length * shifted(each, shift)) for each in kept]
    return kept
