"""How far a forecast may reach on a quantised model: noise gain against a measured noise floor.

python -m skipstep.benchmarks.quantised [--steps 28] [--prompts 8]

The linear layers of the reference model's blocks are emulated in 8 bits: weights rounded once, by
output channel, inputs at every call, by tensor; "int8" to 255 even steps, "fp8" to e4m3. Measured
on other prompts than are judged, behind five steps: the noise s is rel(quantised, exact) of the
denoiser's output at one and the same input, the change c that of two outputs a skip apart, with
rel(x, y) = mean|x - y| / mean|y|. The allowed gain is sqrt(1 + (c / s)^2). Then abcache runs at
each order, and at the highest one under that limit; PSNR is to the own uncached pictures of each
format. Nothing here is timed.
"""

import argparse
import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from skipstep.benchmarks.forecasters import draw
from skipstep.benchmarks.rhythms import FIRST_PROMPT
from skipstep.caching.abcache import ABCache
from skipstep.caching.forecasters.damped import allowed_noise_gain, longest_skip, noise_gain
from skipstep.caching.forecasters.lagrange import Lagrange
from skipstep.kernels.relative_l1 import relative_l1
from skipstep.pipelines.metrics.fidelity import psnr
from skipstep.pipelines.reference.load import load_reference
from skipstep.pipelines.reference.prompts import load_prompts

Rounding = Callable[[Tensor, tuple[int, ...] | None], Tensor]
WARMUP = 5
ORDERS = (1, 2, 3, 4)
INTERVALS = (2, 3, 4)


def scale_of(x: Tensor, dims: tuple[int, ...] | None, largest: float) -> Tensor:
    """Return what the largest magnitude over `dims` (None: all) is divided by to be `largest`."""
    top = x.abs().amax() if dims is None else x.abs().amax(dims, keepdim=True)
    return top.clamp_min(1e-12) / largest


def round_int8(x: Tensor, dims: tuple[int, ...] | None) -> Tensor:
    """Round to 255 even steps.

    >>> round_int8(torch.tensor([127.0, 0.6, -3.2]), None)
    tensor([127.,   1.,  -3.])
    """
    scale = scale_of(x, dims, 127)
    return (x / scale).round() * scale


def round_fp8(x: Tensor, dims: tuple[int, ...] | None) -> Tensor:
    """Round to e4m3: three bits behind the leading one.

    >>> round_fp8(torch.tensor([448.0, 17.0, 1.1]), None)
    tensor([448.0000,  16.0000,   1.1250])
    """
    scale = scale_of(x, dims, 448)
    return (x / scale).to(torch.float8_e4m3fn).to(x.dtype) * scale


FORMATS: dict[str, Rounding | None] = {"fp32": None, "int8": round_int8, "fp8": round_fp8}


def quantised(denoiser: Any, rounding: Rounding) -> nn.Module:
    """Return a copy whose blocks' linear layers see rounded inputs and have rounded weights."""
    found: Any = copy.deepcopy(denoiser)

    def round_input(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return rounding(args[0], None), *args[1:]

    for block in found.transformer_blocks:
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.data = rounding(layer.weight.data, (1,))
                layer.register_forward_pre_hook(round_input)
    rounded: nn.Module = found
    return rounded


def outputs_of(denoiser: nn.Module, calls: list[Any]) -> list[Tensor]:
    """Return what a denoiser gives for recorded calls."""
    with torch.no_grad():
        return [denoiser(*args, **kwargs)[0] for args, kwargs in calls]


def record(pipe: Any, prompts: list[str], steps: int) -> list[Any]:
    """Return the denoiser's calls of one uncached run."""
    calls: list[Any] = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    try:
        draw(pipe, prompts, steps)
    finally:
        hook.remove()
    return calls


def mean_relative(x: list[Tensor], y: list[Tensor]) -> float:
    """Return the mean relative L1 distance over steps and samples."""
    pairs = zip(x, y, strict=True)
    return float(torch.stack([relative_l1(a, b).mean() for a, b in pairs]).mean())


def main() -> None:
    """Print the noise floors, then one row a format, interval and order."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=28, help="of an uncached run")
    parser.add_argument("--prompts", type=int, default=8, help="how many")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pipe: Any = load_reference()
    pipe.set_progress_bar_config(disable=True)
    known = [entry["prompt"] for entry in load_prompts()]
    prompts = known[FIRST_PROMPT : FIRST_PROMPT + given.prompts]
    exact = pipe.transformer
    calls = record(pipe, known[:4], given.steps)
    truth = outputs_of(exact, calls)[WARMUP:]
    one_step = mean_relative(*map(list, zip(*pairwise(truth), strict=True)))
    print(f"change of the output over one step {one_step:.3f}\n")
    print("| format | noise | interval | order | gain | allowed | order under it | PSNR (worst) |")
    print("|---|---|---|---|---|---|---|---|")
    for name, rounding in FORMATS.items():
        pipe.transformer = exact if rounding is None else quantised(exact, rounding)
        noise = 0.0
        if rounding is not None:
            noise = mean_relative(outputs_of(pipe.transformer, calls[WARMUP:]), truth)
        plain = draw(pipe, prompts, given.steps)
        for interval in INTERVALS:
            skips = interval - 1
            change = mean_relative(truth[skips:], truth[:-skips])
            limit = allowed_noise_gain(change=change, noise=noise) if noise else None
            settings: list[tuple[str, Any]] = [(str(order), None) for order in ORDERS]
            settings += [] if limit is None else [("limited", limit)]
            for said, bound in settings:
                order = int(said) if bound is None else max(ORDERS)
                cache = ABCache(interval=interval, order=order, max_noise_gain=bound)
                with pipe.plugins(cache):
                    decibels = psnr(draw(pipe, prompts, given.steps), plain).clamp(max=100)
                forecaster = Lagrange(order=order)
                times = [-float(interval * j) for j in range(order)]
                gain = "" if bound else f"{noise_gain(forecaster.weights(times, float(skips))):.1f}"
                reach = [
                    n
                    for n in ORDERS
                    if limit is None
                    or longest_skip(Lagrange(order=n), interval=interval, max_noise_gain=limit)
                    >= skips
                ]
                print(
                    f"| {name} | {noise:.2%} | {interval} | {said} | {gain} | "
                    f"{'' if limit is None else f'{limit:.1f}'} | {max(reach)} | "
                    f"{float(decibels.mean()):.1f} dB ({float(decibels.min()):.1f}) |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
