"""Token reductions on the reference model: what they save, and what that costs.

python -m benchmarks.tokens --prompts 16 --json out/tokens.json
python -m benchmarks.tokens --model picture256 --prompts 4

Each arm draws the same prompts from the same seeds as the plain pipeline, which stands below it
with as many steps as cost the same. FLOPs are counted by torch; nothing is timed. The reference
models have 64 picture tokens ("picture"), the least at which any of this makes sense, or 256
("picture256"): the table shows what a reduction does to a picture, not what it saves on a large
one.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from skipstep.pipelines.compare.run import describe_machine
from skipstep.pipelines.reference import load_reference
from skipstep.pipelines.reference.prompts import load_prompts
from skipstep.pipelines.tune.trial import Outcome, Trier
from skipstep.plugins import options
from skipstep.plugins.catalog import load

ARMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("tome", {"ratio": 0.25}),
    ("tome", {"ratio": 0.5}),
    ("evit", {"keep": 0.75}),
    ("evit", {"keep": 0.5}),
    ("zipvl", {"mass": 0.95}),
    ("zipvl", {"mass": 0.8}),
    ("spatten", {"keep": 0.5}),
    ("spatten", {"keep": 0.25}),
)


def main() -> None:
    """Try every arm and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="picture", help="the reference model's name")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--dense-steps", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = [each["prompt"] for each in load_prompts()]
    judged = known[:: len(known) // arguments.prompts][: arguments.prompts]
    pipe = load_reference(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    print(", ".join(f"{key} {value}" for key, value in describe_machine(pipe).items()))
    print("\n| arm | FLOPs | PSNR | worst | LPe |\n|---|---|---|---|---|")
    trier = Trier(pipe, judged, range(len(judged)), arguments.steps, {})
    rows = []
    for name, chosen in ARMS:
        plugin = options.construct(load(name), chosen | {"dense_steps": arguments.dense_steps})
        told = ", ".join(f"{key}={value}" for key, value in chosen.items())
        outcome = trier.run([plugin])
        steps = max(1, round(outcome.work * arguments.steps))
        for arm, result in ((f"{name} {told}", outcome), (f"{steps} steps", trier.run([], steps))):
            print(line(arm, result), flush=True)
            rows.append({"arm": arm, "steps": arguments.steps} | asdict(result))
        if arguments.json is not None:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def line(arm: str, result: Outcome) -> str:
    """Return one row of the table."""
    return (
        f"| {arm} | {result.work:.1%} | {result.psnr:.1f} dB | {result.worst_psnr:.1f} dB "
        f"| {result.distance:.3f} |"
    )


if __name__ == "__main__":
    main()
