"""The reference model's calibrated solvers of 5 and 8 steps.

Run: python -m skipstep.pipelines.reference.solvers          writes `solver-5.json`, `solver-8.json`
     python -m skipstep.pipelines.reference.solvers --wide   and `solver-5-wide.json`, ...

Sixteen evaluation prompts and noises. The files at guidance 3 serve 1.5 to 5.25; the wide ones,
fitted at 1, 3 and 7, serve all between and are a little further off at 3. The files of guidance 3
in this folder were made before the winner was fitted once more on all noises.
"""

import argparse
from pathlib import Path

from skipstep.pipelines.reference.load import load_reference
from skipstep.pipelines.reference.prompts import load_prompts
from skipstep.pipelines.tune.calibrate_solver import SolverCalibration
from skipstep.samplers.solvers.calibrated import Calibrated
from skipstep.samplers.solvers.solver_file import SolverFile

__all__ = ["STEPS", "calibrated_solver"]

STEPS = (5, 8)
GUIDANCE = (3.0,)
WIDE = (1.0, 3.0, 7.0)
FIRST_SEED = 9000


def calibrated_solver(steps: int, *, wide: bool = False) -> Calibrated:
    """Return the reference model's solver of 5 or 8 steps, for guidance near 3 or from 1 to 7.

    Raises ValueError for other numbers of steps.
    """
    if steps not in STEPS:
        raise ValueError(f"steps={steps}: the reference model has calibrated solvers for {STEPS}")
    return Calibrated(file=SolverFile.load(Path(__file__).with_name(file_name(steps, wide))))


def file_name(steps: int, wide: bool) -> str:
    """Return the name of a solver's file."""
    return f"solver-{steps}{'-wide' if wide else ''}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--wide", action="store_true", help="fit at guidance 1, 3 and 7")
    arguments = parser.parse_args()
    made = SolverCalibration(
        load_reference(),
        [each["prompt"] for each in load_prompts()][9::16],
        guidance=WIDE if arguments.wide else GUIDANCE,
        trajectories=16,
        reference_steps=48,
        seed=FIRST_SEED,
    )
    for steps in STEPS:
        found = made.fit(steps)
        found.save(arguments.output / file_name(steps, arguments.wide))
        print(f"{steps} steps: {found.measured}", flush=True)


if __name__ == "__main__":
    main()
