"""What searches and walks in parallel are worth, on an exact score: 64 numbers in 32 modes.

    python -m benchmarks.search [--seeds 20]

Searches: distance of the best found from one rare mode, beside best of N at no fewer evaluations,
20 steps, mean over seeds. Parallel in time: rounds and evaluations beside Euler's steps one after
another, and the distance (root mean square) of its ends from theirs, median and largest of 64.
"""

import argparse
import statistics

import torch
from torch import Tensor

from skipstep.samplers.distill.flow import Condition
from skipstep.samplers.distill.walk import shifted_nodes, walk
from skipstep.samplers.parallel import parallel_walk
from skipstep.samplers.search.best_of import BestOf
from skipstep.samplers.search.evosearch import EvoSearch
from skipstep.samplers.search.particles import Particles
from skipstep.samplers.search.sampler import Method
from skipstep.testing.mixtures import ExactSampler, mixture

__all__ = ["beside_best_of_n"]

STEPS, MODE = 20, 5
WALKS = ((10, 10), (25, 16), (50, 16), (100, 16))
"""Steps and window."""


def towards_a_rare_mode(pictures: Tensor) -> Tensor:
    """Score by nearness to one of 32 modes, so that best of N rarely starts near it."""
    reward: Tensor = -(pictures - mixture("latent").means[MODE]).square().mean(1).sqrt()
    return reward


def beside_best_of_n(method: Method, seeds: int) -> tuple[float, float, float]:
    """Return the mean distance a search ends at, that of best of N at no fewer evaluations, and the
    search's mean evaluations.
    """
    ours, theirs, spent = [], [], []
    for seed in range(seeds):
        sampler = ExactSampler(mixture("latent"), STEPS)
        found = method.run(sampler, towards_a_rare_mode, torch.Generator().manual_seed(seed))
        equal = BestOf(population=-(-found.evaluations // STEPS))
        plain = equal.run(
            ExactSampler(mixture("latent"), STEPS),
            towards_a_rare_mode,
            torch.Generator().manual_seed(seed),
        )
        ours.append(-found.score)
        theirs.append(-plain.score)
        spent.append(found.evaluations)
    return statistics.mean(ours), statistics.mean(theirs), statistics.mean(spent)


class ExactFlow:
    """The velocity of the exact flow, rows at times of their own."""

    def __init__(self) -> None:
        self.mixture = mixture("latent")

    def __call__(
        self, x: Tensor, t: Tensor, condition: Condition, s: Tensor | None = None
    ) -> Tensor:
        """Return v(x, t) = (x - E[x_0]) / t."""
        v = torch.empty_like(x)
        for time in sorted(set(t.tolist())):
            rows, inside = t == time, min(time, 1 - 1e-6)
            x_0 = self.mixture.picture(x[rows] / (1 - inside), inside / (1 - inside))
            v[rows] = (x[rows] - x_0) / time
        return v


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    print("| method | distance | best of N | evaluations |\n|---|---|---|---|")
    methods: dict[str, Method] = {
        "resample": Particles(population=16),
        "evolve": EvoSearch(population=8),
    }
    for name, method in methods.items():
        ours, theirs, spent = beside_best_of_n(method, seeds)
        print(f"| `{name}` | {ours:.2f} | {theirs:.2f} | {spent:.0f} |")
    print("\n| steps | window | memory | rounds | evaluations | median error | largest |")
    print("|---|---|---|---|---|---|---|")
    flow = ExactFlow()
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for steps, window in WALKS:
        nodes = shifted_nodes(steps)
        truth = walk(flow, noise, nodes, {})
        for memory in (0, 2):
            found = parallel_walk(
                flow, noise, nodes, {}, window=window, tolerance=1e-2, memory=memory
            )
            errors = (found.x - truth).square().mean(1).sqrt()
            print(
                f"| {steps} | {window} | {memory} | {found.rounds} ({steps / found.rounds:.1f}x "
                f"fewer) | {found.evaluations / steps:.1f}x | {float(errors.median()):.2g} | "
                f"{float(errors.max()):.2g} |"
            )


if __name__ == "__main__":
    main()
