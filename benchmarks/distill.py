"""Students of every recipe on the plane, beside their exact teacher in as many Euler steps.

The last two tables are students of guided teachers with prompts, and causal ones of clips.
The figure is the sliced Wasserstein distance of 4096 samples to fresh data, less is better; two
draws of data are the floor apart. Figures at one iteration count compare recipes at equal updates,
not at equal cost.

    python -m benchmarks.distill                       ring and checkerboard, 1000 iterations
    python -m benchmarks.distill --quick               as the tests run it
"""

import argparse
import time

import torch

from skipstep.samplers.distill import plane_clips, plane_prompts
from skipstep.samplers.distill.plane import checkerboard, ring, sliced_wasserstein
from skipstep.samplers.distill.plane_suite import CASES, QUICK, Proof, learned_flow, prove

HEAD = "| recipe | teacher | student | gain | CPU s |\n|---|---|---|---|---|"
MIXTURES = {"ring": ring, "checkerboard": checkerboard}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} iterations, ring only")
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--only", help="recipes whose names begin so")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    iterations = QUICK if arguments.quick else arguments.iterations
    names = ["ring"] if arguments.quick else list(MIXTURES)
    for name in names:
        mixture = MIXTURES[name]()
        generator = torch.Generator().manual_seed(3)
        floor = sliced_wasserstein(mixture.sample(4096, generator), mixture.sample(4096, generator))
        start = learned_flow(mixture, 400 if arguments.quick else 1000)
        print(f"\n{name}, {iterations} iterations, floor {floor:.3f}\n")
        print(HEAD)
        for case in CASES:
            if arguments.only and not case.recipe.startswith(arguments.only):
                continue
            began = time.process_time()
            tell(prove(case, mixture, start, iterations), began)
    for title, suite, learned in (
        ("prompts", plane_prompts, plane_prompts.learned_prompts),
        ("clips", plane_clips, plane_clips.learned_clips),
    ):
        cases = [each for each in suite.CASES if each.recipe.startswith(arguments.only or "")]
        if not cases:
            continue
        print(f"\n{title}, {suite.UPDATES} iterations\n{HEAD}")
        start = learned()
        for case in cases:
            began = time.process_time()
            tell(suite.prove(case, start), began)


def tell(proof: Proof, began: float) -> None:
    """Print a row."""
    spent = time.process_time() - began
    row = f"{proof.teacher:.3f} | {proof.student:.3f} | {proof.gain:.1f}x | {spent:.0f}"
    print(f"| {proof.case.name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
