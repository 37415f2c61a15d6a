"""The reference model's calibrated solvers of 5 and 8 steps.

Run: python -m skipstep.pipelines.reference.solvers      writes `solver-5.json` and `solver-8.json`
                                                          (two minutes of one core)

Sixteen evaluation prompts and noises, guidance 3; the files serve guidance 1.5 to 5.25. The files
in this folder were made before the winner was fitted once more on all noises.
"""

import argparse
from pathlib import Path

from skipstep.pipelines.calibrate_solver import SolverCalibration
from skipstep.pipelines.reference.load import load_reference
from skipstep.pipelines.reference.prompts import load_prompts
from skipstep.samplers.solvers.calibrated import Calibrated
from skipstep.samplers.solvers.solver_file import SolverFile

__all__ = ["STEPS", "calibrated_solver"]

STEPS = (5, 8)
GUIDANCE = 3.0
FIRST_SEED = 9000


def calibrated_solver(steps: int) -> Calibrated:
    """Return the reference model's solver of 5 or 8 steps.

    Raises ValueError for other numbers of steps.
    """
    if steps not in STEPS:
        raise ValueError(f"steps={steps}: the reference model has calibrated solvers for {STEPS}")
    return Calibrated(file=SolverFile.load(Path(__file__).with_name(f"solver-{steps}.json")))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    made = SolverCalibration(
        load_reference(),
        [each["prompt"] for each in load_prompts()][9::16],
        guidance=GUIDANCE,
        trajectories=16,
        reference_steps=48,
        seed=FIRST_SEED,
    )
    for steps in STEPS:
        found = made.fit(steps)
        found.save(arguments.output / f"solver-{steps}.json")
        print(f"{steps} steps: {found.measured}", flush=True)


if __name__ == "__main__":
    main()
