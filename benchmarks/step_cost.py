"""What a step of our schedulers costs beside Euler's: time, operations, and bytes moved.

    python -m benchmarks.step_cost

Every scheduler takes a step in turn, again and again, so that a busy machine is as busy for all;
medians are over the steps of whole runs. "Moved" is what the step's operations read and write, in
tensors of the latents' size, counted from the operations themselves: what no faster arithmetic
takes away. A method of order k must read the state, the answer and k - 1 older answers, and write
the next state and one answer: k + 3, where Euler needs 3 (diffusers' Euler moves 5).
"""

import argparse
import time
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from skipstep.samplers.solvers.scheduler import ExponentialAdamsScheduler

SHAPES = ((1, 16, 128, 128), (1, 4, 16, 16))
PRESETS = ("ddim", "ab2", "deis", "dpm++2m", "ab3", "exact2", "unipc")
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
STEPS = 12


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Count operations on tensors of one size, and the bytes that they read and write."""

    def __init__(self, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size, self.operations, self.moved = size, 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        tensors = [each for each in (*args, found) if isinstance(each, Tensor)]
        large = [each for each in tensors if each.numel() == self.size]
        if large and not func.is_view:
            self.operations += 1
            self.moved += sum(each.nbytes for each in large)
        return found


def arms() -> dict[str, Any]:
    """Return the schedulers that are compared."""
    return {
        "Euler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "DPM++2M": diffusers.DPMSolverMultistepScheduler(**FLOW),
        "UniPC": diffusers.UniPCMultistepScheduler(**FLOW),
        **{f"ours: {each}": ExponentialAdamsScheduler(**FLOW, preset=each) for each in PRESETS},
    }


def measure(shape: tuple[int, ...], rounds: int) -> None:
    """Print one table."""
    x, output = (torch.randn(shape) for _ in range(2))
    schedulers = arms()
    steps: dict[str, list[float]] = {label: [] for label in schedulers}
    starts: dict[str, list[float]] = {label: [] for label in schedulers}
    for _ in range(rounds):
        for label, scheduler in schedulers.items():
            began = time.perf_counter()
            scheduler.set_timesteps(STEPS)
            starts[label].append(time.perf_counter() - began)
        for i in range(STEPS):
            for label, scheduler in schedulers.items():
                began = time.perf_counter()
                scheduler.step(output, scheduler.timesteps[i], x, return_dict=False)
                steps[label].append(time.perf_counter() - began)
    euler = float(np.median(steps["Euler"]))
    print(f"\n{' x '.join(str(n) for n in shape)}, {torch.get_num_threads()} thread")
    print("| scheduler | a step | beside Euler | operations | moved | set_timesteps |")
    print("|---|---|---|---|---|---|")
    for label, scheduler in schedulers.items():
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps[: STEPS - 2]:
            scheduler.step(output, t, x, return_dict=False)
        with Traffic(x.numel()) as traffic:
            scheduler.step(output, scheduler.timesteps[STEPS - 2], x, return_dict=False)
        each = float(np.median(steps[label]))
        print(
            f"| {label} | {1e6 * each:.0f} us | {each / euler:.2f}x | {traffic.operations} | "
            f"{traffic.moved / x.nbytes:.0f} | {1e3 * float(np.median(starts[label])):.1f} ms |"
        )


def main() -> None:
    """Run both sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    for shape in SHAPES:
        measure(shape, arguments.rounds)


if __name__ == "__main__":
    main()
