"""Does what autotune promises hold on prompts that it never saw?

    python -m benchmarks.autotune --picture docs/autotune.png       two CPU minutes

Tunes the reference model to two targets, one after the other with one store, so that the later
ones read what the earlier ones tried. Printed beside each target: what the winner reached on the
prompts it was tuned on, and on the held-out ones. A promise is kept within 5 %.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from skipstep.pipelines.reference.load import load_reference
from skipstep.pipelines.reference.prompts import load_prompts
from skipstep.pipelines.tune.trial import Outcome
from skipstep.pipelines.tune.tuning import Tuning

TARGETS = (("target_speedup", 2.0), ("min_psnr", 35.0))


def reached(target: str, outcome: Outcome) -> float:
    """Return an outcome in the unit of a target."""
    if target == "target_speedup":
        return 1 / outcome.work
    return outcome.psnr if target == "min_psnr" else outcome.distance


def short_of(tuning: Tuning) -> float:
    """Return by which share the held-out prompts miss the target; below 0 they surpass it."""
    name, wanted = tuning.target.name, tuning.target.value
    ratio = reached(name, tuning.held_out) / wanted
    return ratio - 1 if name == "max_feature_distance" else 1 - ratio


def main() -> None:
    """Tune, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="picture")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--held-out", type=int, default=12)
    parser.add_argument("--trials", type=int, default=16, help="of the first target; then 4 more")
    parser.add_argument("--store", type=Path, help="SQLite file; None is a temporary one")
    parser.add_argument("--picture", type=Path, help="PNG of the last front")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    pipe = load_reference(chosen.model)
    pipe.set_progress_bar_config(disable=True)
    known = [each["prompt"] for each in load_prompts()]
    table = Table(title=f"{chosen.model}, {chosen.steps} steps, {chosen.held_out} held-out prompts")
    for heading in ("target", "recipe", "tuned on", "held out", "speed-up", "PSNR", "promise"):
        table.add_column(heading, overflow="fold")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, value) in enumerate(TARGETS):
            found = pipe.autotune(
                known[:: len(known) // chosen.prompts][: chosen.prompts],
                held_out=known[5 :: len(known) // chosen.held_out][: chosen.held_out],
                steps=chosen.steps,
                trials=chosen.trials + 4 * number,
                store=chosen.store or Path(folder) / "trials.db",
                **{name: value},
            )
            pipe.disable_plugins()
            miss = short_of(found)
            table.add_row(
                f"{name}={value:g}",
                found.best.name,
                f"{reached(name, found.best.outcome):.3g}",
                f"{reached(name, found.held_out):.3g}",
                f"{1 / found.held_out.work:.2f}x",
                f"{found.held_out.psnr:.1f} dB",
                "kept" if miss <= 0 else f"missed by {miss:.1%}",
            )
            print(found, end="\n\n", flush=True)
    Console(width=140).print(table)
    if chosen.picture is not None:
        found.save_picture(chosen.picture)


if __name__ == "__main__":
    main()
