"""Planned schedules against an even rhythm and against fewer steps, on the reference model.

python -m benchmarks.schedules --steps 20 28 50 --json out/schedules.json

Schedules are planned on 8 calibration prompts and judged on 16 others (prompts.json, evenly spread,
none in both). "even" computes the first three steps and spreads the rest of the budget evenly.
Figures are fidelity to the uncached pictures at equal counted steps; nothing here is timed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from skipstep.caching.forecasters.fitted import HALF_A_LINE
from skipstep.caching.gates.schedule import Schedule
from skipstep.pipelines.compare.run import describe_machine
from skipstep.pipelines.reference import load_reference
from skipstep.pipelines.reference.prompts import load_prompts
from skipstep.pipelines.tune.plan import instrument, schedule_cache
from skipstep.pipelines.tune.trial import Trier

FORECASTERS: dict[str, Any] = {
    "fitted": "fitted",
    "fitted to 2": {"type": "fitted", "values": 2},
    "reuse": "reuse",
    "half a line": HALF_A_LINE,
    "lagrange 2": {"type": "lagrange", "order": 2},
    "lagrange 3": {"type": "lagrange", "order": 3},
    "taylor 2": {"type": "taylor", "order": 2},
}
SPANS = ("output", "modules")
WARM = 3


def even_steps(steps: int, count: int) -> tuple[int, ...]:
    """Return the first three steps and the rest of `count` spread evenly behind them."""
    warm = min(WARM, count)
    rest = count - warm
    gap = (steps - warm) / (rest + 1)
    later = {min(steps - 1, warm - 1 + round(gap * (k + 1))) for k in range(rest)}
    return tuple(sorted({*range(warm), *later}))


def main() -> None:
    """Plan, try and print one row an arm."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 28, 50])
    parser.add_argument("--shares", type=float, nargs="+", default=[1 / 2, 1 / 3, 2 / 3])
    parser.add_argument("--calibrate", type=int, default=8)
    parser.add_argument("--judge", type=int, default=16)
    parser.add_argument("--objectives", nargs="+", default=["squares"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipe = load_reference()
    pipe.set_progress_bar_config(disable=True)
    known = [each["prompt"] for each in load_prompts()]
    judged = known[:: len(known) // arguments.judge][: arguments.judge]
    rest = [prompt for prompt in known if prompt not in judged]
    planned_on = rest[:: len(rest) // arguments.calibrate][: arguments.calibrate]
    print(", ".join(f"{key} {value}" for key, value in describe_machine(pipe).items()))
    rows = []
    for steps in arguments.steps:
        found = instrument(
            pipe, planned_on, steps=steps, seed=10_000, features=("residual", "output")
        )
        trier = Trier(pipe, judged, range(len(judged)), steps, {})
        for share in arguments.shares:
            count = round(share * steps)
            even = Schedule(steps=steps, compute=even_steps(steps, count))
            arms: dict[str, Any] = {f"{count} steps, uncached": None}
            arms["even, lagrange 2, residual"] = schedule_cache(
                even, FORECASTERS["lagrange 2"], "residual"
            )
            for objective in arguments.objectives:
                for name, forecaster in FORECASTERS.items():
                    arms[f"planned ({objective}), {name}, residual"] = found.cache(
                        count, forecaster, "residual", objective=objective
                    )
                for span in SPANS:
                    for name in ("fitted", "half a line"):
                        arms[f"planned ({objective}), {name}, {span}"] = found.cache(
                            count, FORECASTERS[name], span, objective=objective
                        )
            print(f"\n{steps} steps, {count} computed", flush=True)
            for name, cache in arms.items():
                outcome = trier.run([], count) if cache is None else trier.run([cache])
                compute = [] if cache is None else list(cache.gate.schedule.compute)
                print(
                    f"{name:<40} {outcome.work:6.1%} of the FLOPs  {outcome.psnr:5.1f} dB "
                    f"(worst {outcome.worst_psnr:4.1f})  LPe {outcome.distance:.3f}  {compute}",
                    flush=True,
                )
                row = {"steps": steps, "count": count, "arm": name, "compute": compute}
                rows.append(row | vars_of(outcome))
                if arguments.json is not None:
                    arguments.json.parent.mkdir(parents=True, exist_ok=True)
                    arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def vars_of(outcome: Any) -> dict[str, Any]:
    """Return the figures of an outcome."""
    return {name: getattr(outcome, name) for name in ("work", "psnr", "worst_psnr", "distance")}


if __name__ == "__main__":
    main()
