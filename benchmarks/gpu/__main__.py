"""Everything that needs a GPU, in slices below ten minutes that go on where they stopped.

    python -m benchmarks.gpu                       # what there is, and what is left
    python -m benchmarks.gpu correctness           # one slice; again: the rest of it
    python -m benchmarks.gpu all --minutes 40
    python -m benchmarks.gpu docs                  # write the tables of docs/kernels.md
    python -m benchmarks.gpu all --dry-run         # tiny sizes on a CPU, through the same code

Results are JSON lines in --output, one file per slice, each line with device, versions and commit;
those of a dry run never reach the page. After `tune` the fastest tiles stand in tuning-sm*.json
there, and where `kernels.tuning` finds them.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from skipstep.benchmarks.gpu.cases import uncovered
from skipstep.benchmarks.gpu.pages import regenerate
from skipstep.benchmarks.gpu.records import ROOT, Record, append, describe, measured
from skipstep.benchmarks.gpu.slices import SLICES, Machine, best_tiles
from skipstep.kernels.tuning import architecture, measured_path, write_measured


def run_slice(name: str, machine: Machine, folder: Path, deadline: float) -> int:
    """Measure what is left of a slice until the deadline; return how many units remain."""
    done = measured(folder, name)
    left = [unit for unit in SLICES[name](machine) if unit.name not in done]
    facts = describe(machine.device)
    while left and time.monotonic() < deadline:
        unit = left.pop(0)
        try:
            record = Record(name, unit.name, facts, values=unit.measure())
        except Exception as error:  # one kernel that fails must not end the session
            record = Record(name, unit.name, facts, error=f"{type(error).__name__}: {error}")
        append(folder / f"{name}.jsonl", record)
        print(f"{name} {unit.name}: {record.error or dict(record.values)}", flush=True)
    return len(left)


def keep_tiles(machine: Machine, folder: Path) -> None:
    """Write the fastest tiles of `tune` beside the results and where kernels read them."""
    times = {name: dict(record.values) for name, record in measured(folder, "tune").items()}
    tiles = best_tiles(times)
    if tiles:
        path = measured_path(architecture(machine.device))
        write_measured(folder / path.name, tiles)
        write_measured(path, tiles)


def overview(machine: Machine, folder: Path) -> None:
    """Print how much of every slice is measured."""
    for name, plan in SLICES.items():
        units, done = [unit.name for unit in plan(machine)], measured(folder, name)
        print(f"{name:12} {sum(unit in done for unit in units):4} of {len(units)} measured")
    for op in sorted(uncovered()):
        print(f"kernels/{op}_triton.py has no case in benchmarks/gpu/cases.py")


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; 0 when it is complete."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("slice", nargs="?", choices=[*SLICES, "all", "docs"])
    parser.add_argument("--minutes", type=float, default=9.0, help="stop measuring after so many")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "kernels.md")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    given = parser.parse_args(arguments)
    if given.slice == "docs":
        regenerate(given.page, given.output)
        return 0
    has_gpu = torch.cuda.is_available()
    on_cpu = given.dry_run or not has_gpu
    machine = Machine(torch.device("cpu" if on_cpu else "cuda"), tiny=given.dry_run)
    if given.slice is None:
        overview(machine, given.output)
    if not given.dry_run and not has_gpu:
        print("not measured: there is no GPU here; --dry-run goes through the code on the CPU")
        return 1
    if given.slice is None:
        return 0
    deadline = time.monotonic() + 60 * given.minutes
    left = 0
    for name in SLICES if given.slice == "all" else [given.slice]:
        left += run_slice(name, machine, given.output, deadline)
        if name == "tune" and not given.dry_run:
            keep_tiles(machine, given.output)
    if left:
        print(f"{left} left: run the same command again to go on")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
