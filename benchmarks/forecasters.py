"""What stands in for a skipped step: fidelity of every forecaster at equal computed steps.

On the reference model, with the residual span, at 20 and 50 steps. "even" computes the first three
steps and then every third (20) or fourth (50); "front" computes ever more rarely (`growing`), as
many steps in all. The figure is the PSNR to the uncached picture in dB, mean over prompts.

With --errors nothing is skipped: the residuals of one uncached run are recorded, and the figure is
the relative L1 error of forecasting each skipped step from the computed ones, in percent, mean over
steps. It costs seconds and does not see how errors add up along a run.

    python -m benchmarks.forecasters --prompts 6
    python -m benchmarks.forecasters --prompts 2 --errors
"""

import argparse
from typing import Any

import torch

from skipstep.caching.base import Forecaster
from skipstep.caching.forecasters.chebyshev import Chebyshev
from skipstep.caching.forecasters.damped import Damped
from skipstep.caching.forecasters.dmd import DynamicModes
from skipstep.caching.forecasters.foca import FoCaForecaster
from skipstep.caching.forecasters.frequency import FrequencySplit
from skipstep.caching.forecasters.hermite import Hermite
from skipstep.caching.forecasters.lagrange import Lagrange
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.forecasters.taylor import Taylor
from skipstep.caching.gates.growing import growing_steps
from skipstep.caching.gates.interval import is_on_interval
from skipstep.caching.gates.schedule import Schedule, ScheduleGate
from skipstep.caching.history import History
from skipstep.caching.product import Cache
from skipstep.pipelines.metrics.fidelity import psnr
from skipstep.pipelines.reference import load_reference
from skipstep.pipelines.reference.prompts import load_prompts

WARMUP = 3
INTERVALS = {20: 3, 50: 4}

ARMS: dict[str, Forecaster] = {
    "reuse": Reuse(),
    "lagrange order 2": Lagrange(order=2),
    "lagrange order 3": Lagrange(order=3),
    "taylor order 2": Taylor(order=2),
    "hermite order 1, sigma 0.5": Hermite(sigma=0.5),
    "hermite order 1, sigma 0.6": Hermite(),
    "hermite order 2, sigma 0.5": Hermite(order=2, sigma=0.5),
    "hermite order 2, sigma 0.7": Hermite(order=2, sigma=0.7),
    "foca": FoCaForecaster(),
    "chebyshev M 4, w 0.5, K 5": Chebyshev(),
    "chebyshev M 4, w 0.5, K 10": Chebyshev(window=10),
    "chebyshev M 4, w 1, K 10": Chebyshev(mix=1, window=10),
    "chebyshev M 2, w 0.5, K 10": Chebyshev(degree=2, window=10),
    "chebyshev lambda 0.001, K 5": Chebyshev(penalty=1e-3),
    "dmd": DynamicModes(),
    "dmd, growth 1": DynamicModes(max_growth=1),
    "frequency order 1, cutoff 0.1": FrequencySplit(),
    "frequency order 2, cutoff 0.1": FrequencySplit(order=2, sigma=0.5),
    "frequency order 2, cutoff 0.5": FrequencySplit(order=2, sigma=0.5, cutoff=0.5),
    "damped 0.1 lagrange order 2": Damped(),
    "damped 0.25 lagrange order 2": Damped(damping=0.25),
    "gain 5 lagrange order 3": Damped(forecaster=Lagrange(order=3), damping=0, max_noise_gain=5),
}


def schedules(steps: int) -> dict[str, tuple[int, ...]]:
    """Return the two lists of computed steps, equally long."""
    even = [
        i for i in range(steps) if is_on_interval(i, interval=INTERVALS[steps], warmup_steps=WARMUP)
    ]
    warmup = {20: WARMUP, 50: 5}[steps]
    front = growing_steps(steps, window=2, growth=0.75, warmup_steps=warmup)
    if len(even) != len(front):
        raise RuntimeError(f"{len(even)} and {len(front)} computed steps of {steps}")
    return {"even": tuple(even), "front": tuple(front)}


def draw(pipe: Any, prompts: list[str], steps: int) -> torch.Tensor:
    """Draw all prompts in one batch, each with its own seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    images: torch.Tensor = pipe(
        prompts, num_inference_steps=steps, generator=generators, output_type="pt"
    ).images
    return images


def record(pipe: Any, prompts: list[str], steps: int) -> list[torch.Tensor]:
    """Return the residual of the block stack at every step of an uncached run."""
    blocks = pipe.transformer.transformer_blocks
    starts: list[torch.Tensor] = []
    residuals: list[torch.Tensor] = []
    hooks = [
        blocks[0].register_forward_pre_hook(lambda _, args: starts.append(args[0].clone())),
        blocks[-1].register_forward_hook(lambda *call: residuals.append(call[-1] - starts[-1])),
    ]
    draw(pipe, prompts, steps)
    for hook in hooks:
        hook.remove()
    return residuals


def error(
    forecaster: Forecaster, residuals: list[torch.Tensor], computed: tuple[int, ...]
) -> float:
    """Return the mean relative L1 error over the steps that are not computed, in percent."""
    found = forecaster.for_run(len(residuals), (4, 16, 16))
    history = History(len(residuals[0]), found.anchors)
    rows = list(range(len(residuals[0])))
    errors = []
    for step, truth in enumerate(residuals):
        if step in computed:
            history.push(truth, rows, step)
        else:
            missed = (history.forecast(found, rows, step) - truth).abs().mean()
            errors.append(float(missed / truth.abs().mean()))
    return 100 * sum(errors) / len(errors)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=6, help="how many of the reference prompts")
    parser.add_argument("--only", default="", help="arms whose name contains this")
    parser.add_argument("--errors", action="store_true", help="one forecast each, not whole runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pipe: Any = load_reference()
    pipe.set_progress_bar_config(disable=True)
    prompts = [entry["prompt"] for entry in load_prompts()][: given.prompts]
    cells = [(n, name, s) for n in INTERVALS for name, s in schedules(n).items()]
    recorder = record if given.errors else draw
    plain: dict[int, Any] = {steps: recorder(pipe, prompts, steps) for steps in INTERVALS}
    titles = [f"{len(s)} of {n}, {name}" for n, name, s in cells]
    print(f"| forecaster | {' | '.join(titles)} |\n|{'---|' * (len(cells) + 1)}")
    for arm, forecaster in ARMS.items():
        if given.only not in arm:
            continue
        figures = []
        for steps, _, computed in cells:
            if given.errors:
                figures.append(f"{error(forecaster, plain[steps], computed):.1f}")
                continue
            gate = ScheduleGate(schedule=Schedule(steps=steps, compute=computed))
            cache = Cache(
                gate=gate,
                forecaster=forecaster,  # type: ignore[arg-type]
                warmup_steps=1,
                final_steps=0,
                max_skips=None,
            )
            pipe.enable_plugin(cache)
            image = draw(pipe, prompts, steps)
            figures.append(f"{float(psnr(image, plain[steps]).mean()):.1f}")
        print(f"| {arm} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
