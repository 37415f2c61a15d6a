"""What a pipeline hands to its denoiser for a prompt, recorded from the pipeline itself.

The pipeline is run until its denoiser has been called with and without the prompt; whatever came
along besides the noisy picture and the time is the condition. So nothing here knows a model by
name: not its text encoders, nor masks, sizes or packed latents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skipstep.plugins.errors import Incompatible
from skipstep.plugins.profile import Denoiser, parameters_of, profile
from skipstep.plugins.run import TIMESTEP_NAMES
from skipstep.samplers.distill.flow import DenoiserBridge

__all__ = ["Recorded", "record"]

FLOW_SCALES = (1000.0, 1.0)
CHUNK = 32


@dataclass(frozen=True)
class Recorded:
    """The denoiser, its bridge, and conditions: one row per prompt, one row of no prompt."""

    denoiser: Denoiser
    bridge: DenoiserBridge
    condition: dict[str, Tensor]
    empty: dict[str, Tensor]
    shape: tuple[int, ...]


class _Enough(Exception):
    """Ends a run once its conditions are known."""


def record(pipe: Any, prompts: Sequence[str], call: Mapping[str, Any] | None = None) -> Recorded:
    """Return the conditions of `prompts` and how the pipeline's denoiser is asked.

    `call` goes to the pipeline (size, negative prompt, ...).

    Raises Incompatible where the pipeline has more than one denoiser, guides in none of the two
    usual ways, or gives its denoiser a time that is no multiple of the noise level.
    """
    found = profile(pipe)
    if len(found.denoisers) != 1:
        raise Incompatible(
            f"distill: {found.pipeline} has {len(found.denoisers)} denoisers and one is distilled"
        )
    denoiser = found.denoisers[0]
    parts = [
        _record_chunk(pipe, denoiser, list(prompts[i : i + CHUNK]), dict(call or {}))
        for i in range(0, len(prompts), CHUNK)
    ]
    sample, time, constants = parts[0][2:]
    bridge = _bridge(pipe, denoiser, sample, time, constants)
    return Recorded(
        denoiser=denoiser,
        bridge=bridge,
        condition={name: torch.cat([part[0][name] for part in parts]) for name in parts[0][0]},
        empty={name: value[:1] for name, value in parts[0][1].items()},
        shape=tuple(sample[1].shape[1:]),
    )


def _record_chunk(
    pipe: Any, denoiser: Denoiser, prompts: list[str], call: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[str, Tensor], tuple[str, Any], Any]:
    """Return conditions with and without prompts, named sample and time, and constants."""
    calls: list[dict[str, Any]] = []
    parameters = parameters_of(denoiser.inner)

    def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(zip(parameters, args, strict=False)) | kwargs
        calls.append(named)
        if len(calls) == 2 or len(_sample(named, parameters)[1]) == 2 * len(prompts):
            raise _Enough

    hook = denoiser.module.register_forward_pre_hook(look, with_kwargs=True)
    bar = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(**{**bar, "disable": True})
    try:
        with pipe.plugins_off():
            pipe(prompts, num_inference_steps=2, output_type="latent", **call)
    except _Enough:
        pass
    finally:
        hook.remove()
        pipe.set_progress_bar_config(**{"disable": False, **bar})
    if not calls:
        raise Incompatible(f"distill: {denoiser.name} was never called")
    first = calls[0]
    sample, time = _sample(first, parameters), _time(first)
    rows, count = len(sample[1]), len(prompts)
    given, constants = _split(first, rows, {sample[0], time[0]})
    if rows == 2 * count:
        without = {name: value[:count] for name, value in given.items()}
        along = {name: value[count:] for name, value in given.items()}
    elif rows == count and len(calls) == 2:
        along, (without, _) = given, _split(calls[1], rows, {sample[0], time[0]})
        same = all(torch.equal(along[n], without[n]) for n in along if n in without)
        without = {} if same else without
    else:
        along, without = given, {}
    return along, without, sample, time, constants


def _sample(named: Mapping[str, Any], parameters: tuple[str, ...]) -> tuple[str, Tensor]:
    """Return the noisy picture: the denoiser's first parameter that is a batch."""
    for name in parameters:
        value = named.get(name)
        if isinstance(value, Tensor) and value.ndim > 1:
            return name, value
    raise Incompatible("distill: the denoiser's noisy picture is no tensor, which is not supported")


def _time(named: Mapping[str, Any]) -> tuple[str, Any]:
    name = next(name for name in TIMESTEP_NAMES if name in named)
    return name, named[name]


def _split(
    named: Mapping[str, Any], rows: int, skipped: set[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return arguments with one row per sample, and the others; one level of mappings is opened."""
    flat: dict[str, Any] = {}
    for name, value in named.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": each for inner, each in value.items()}
        elif name not in skipped and name != "return_dict":
            flat[name] = value
    given = {
        name: value.detach().clone()
        for name, value in flat.items()
        if isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows
    }
    return given, {name: value for name, value in flat.items() if name not in given}


def _bridge(
    pipe: Any, denoiser: Denoiser, sample: tuple[str, Tensor], time: tuple[str, Any], constants: Any
) -> DenoiserBridge:
    config = pipe.scheduler.config
    prediction = config.get("prediction_type", "flow_prediction")
    if "betas" in vars(pipe.scheduler) and prediction != "flow_prediction":
        alphas = pipe.scheduler.alphas_cumprod.float().cpu()
        return DenoiserBridge(prediction, sample[0], time[0], 1.0, alphas, constants)
    given = float(torch.as_tensor(time[1]).flatten()[0])
    scale = given / float(pipe.scheduler.sigmas[0])
    nearest = min(FLOW_SCALES, key=lambda known: abs(math_log_ratio(scale, known)))
    if abs(math_log_ratio(scale, nearest)) > 0.02:
        raise Incompatible(
            f"distill: {denoiser.name} is given the time {given:g} at noise level "
            f"{float(pipe.scheduler.sigmas[0]):g}: only 1000 times the level, or the level itself, "
            "is supported"
        )
    return DenoiserBridge("flow_prediction", sample[0], time[0], nearest, None, constants)


def math_log_ratio(a: float, b: float) -> float:
    """Return log(a / b), infinite where they have not the same sign."""
    import math

    return math.log(a / b) if a / b > 0 else math.inf
