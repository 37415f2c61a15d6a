"""Evolved plans of modules (ECAD) beside planned steps and abcache, on prompts of neither.

python -m skipstep.benchmarks.evolution [--steps 20] [--trials 200] [--calibrate 4] [--judge 8]

On the reference model. Every arm is judged on the same prompts at its own counted FLOPs; "planned"
is `plan_cache`'s schedule of the same share of the steps, made on the prompts that the plans were
evolved on. The rules are the first generation: what evolution has to beat. Nothing is timed.
"""

import argparse
from typing import Any

import torch

from skipstep.benchmarks.rhythms import FIRST_PROMPT
from skipstep.caching.abcache import ABCache
from skipstep.pipelines.reference.load import load_reference
from skipstep.pipelines.reference.prompts import load_prompts
from skipstep.pipelines.tune.ecad import Evolved, evolve_plan
from skipstep.pipelines.tune.plan import plan_cache
from skipstep.pipelines.tune.trial import Trier

SHARES = (0.4, 0.5, 0.65)


def main() -> None:
    """Evolve, then print one row an arm."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--population", type=int, default=24)
    parser.add_argument("--calibrate", type=int, default=4, help="prompts evolved on")
    parser.add_argument("--judge", type=int, default=8, help="prompts judged on")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pipe: Any = load_reference()
    pipe.set_progress_bar_config(disable=True)
    known = [each["prompt"] for each in load_prompts()]
    evolved_on = known[: given.calibrate]
    judged = known[FIRST_PROMPT : FIRST_PROMPT + given.judge]
    found = evolve_plan(
        pipe,
        evolved_on,
        steps=given.steps,
        trials=given.trials,
        population=given.population,
        seed=10_000,
    )
    rules = Evolved(found.tried[:6])
    arms: dict[str, Any] = {}
    for share in SHARES:
        arms[f"evolved, at most {share:.0%}"] = found.best(share)[0]
        if min(outcome.work for _, outcome in rules.tried) <= share:
            arms[f"best rule, at most {share:.0%}"] = rules.best(share)[0]
        arms[f"planned steps, {share:.0%}"] = plan_cache(
            pipe, evolved_on, fraction=share, steps=given.steps, seed=10_000
        )
    arms |= {f"abcache interval={n}": ABCache(interval=n) for n in (2, 3, 4)}
    trier = Trier(pipe, judged, range(len(judged)), given.steps, {})
    print(f"{given.steps} steps, {len(found.tried)} plans tried on {given.calibrate} prompts\n")
    print("| arm | computed | PSNR (worst) | LPe |\n|---|---|---|---|")
    for name, cache in arms.items():
        outcome = trier.run([cache])
        print(
            f"| {name} | {outcome.work:.0%} | {outcome.psnr:.1f} dB ({outcome.worst_psnr:.1f}) | "
            f"{outcome.distance:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
