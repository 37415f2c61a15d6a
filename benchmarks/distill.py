"""Students of every recipe on the plane, beside their exact teacher in as many Euler steps.

The figure is the sliced Wasserstein distance of 4096 samples to fresh data, less is better; two
draws of data are the floor apart. Figures at one iteration count compare recipes at equal updates,
not at equal cost.

    python -m benchmarks.distill                       ring and checkerboard, 1000 iterations
    python -m benchmarks.distill --quick               as the tests run it
"""

import argparse
import time

import torch

from skipstep.samplers.distill.plane import checkerboard, ring, sliced_wasserstein
from skipstep.samplers.distill.plane_suite import CASES, QUICK, learned_flow, prove

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
        print("| recipe | teacher | student | gain | CPU s |\n|---|---|---|---|---|")
        for case in CASES:
            if arguments.only and not case.recipe.startswith(arguments.only):
                continue
            began = time.process_time()
            proof = prove(case, mixture, start, iterations)
            spent = time.process_time() - began
            row = f"{proof.teacher:.3f} | {proof.student:.3f} | {proof.gain:.1f}x | {spent:.0f}"
            print(f"| {case.name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
