"""The teacher's own paths from noise to data: walked once, kept, and drawn from many times.

DPM-Solver++ 2M (Lu et al. 2022, arXiv:2211.01095) in the flow's time, lambda = log((1 - t) / t):
  D_i = x_0(t_i) + h_i / (2 h_(i-1)) (x_0(t_i) - x_0(t_(i-1))),  h_i = lambda_(i+1) - lambda_i
  x(t_(i+1)) = (t_(i+1) / t_i) x(t_i) + ((1 - t_(i+1)) - (t_(i+1) / t_i) (1 - t_i)) D_i
The first and the last step are of first order.
Files are safetensors of 16-bit states.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from skipstep.samplers.distill.flow import Condition, Velocity
from skipstep.samplers.distill.protocol import Batch

__all__ = ["PathSource", "next_state", "read_prompts", "teacher_path", "write_paths"]

NOISIEST = 0.999


@torch.no_grad()
def teacher_path(
    teacher: Velocity,
    noise: Float[Tensor, " b *size"],
    times: Sequence[float],
    condition: Condition,
) -> Float[Tensor, "b k *size"]:
    """Return the states at `times`, falling from 1 to 0, of the path that begins at the noise."""
    x, path, before = noise, [noise], None
    for i, t in enumerate(times[:-1]):
        x_0 = x - t * teacher(x, torch.full((len(x),), t).to(x), condition)
        x, before = next_state(x, x_0, before, times, i), x_0
        path.append(x)
    return torch.stack(path, 1)


def next_state(
    x: Float[Tensor, " b *size"],
    x_0: Float[Tensor, " b *size"],
    before: Float[Tensor, " b *size"] | None,
    times: Sequence[float],
    i: int,
) -> Float[Tensor, " b *size"]:
    """Return x(t_(i+1)) from x(t_i), its x_0, and the x_0 before it if there is one."""
    t, s = times[i], times[i + 1]
    d = x_0
    if before is not None and s > 0:
        newer, now, older = (
            math.log((1 - u) / u) for u in (s, min(t, NOISIEST), min(times[i - 1], NOISIEST))
        )
        d = x_0 + (newer - now) / (2 * (now - older)) * (x_0 - before)
    return (s / t) * x + ((1 - s) - (s / t) * (1 - t)) * d


def write_paths(
    file: Path, path: Float[Tensor, "b k *size"], times: Sequence[float], prompts: Sequence[str]
) -> None:
    """Write paths and the prompts they were walked for."""
    tensors = {"path": path.half().contiguous(), "times": torch.tensor(times)}
    partial = file.with_suffix(".partial")
    save_file(tensors, partial, metadata={"prompts": json.dumps(list(prompts))})
    os.replace(partial, file)


def read_prompts(file: Path) -> list[str]:
    """Return the prompts of a file of paths."""
    with safe_open(file, framework="pt") as opened:
        prompts: list[str] = json.loads(opened.metadata()["prompts"])
    return prompts


@dataclass
class PathSource:
    """Draw from kept paths; `data` of a batch are their ends.

    `conditions` hold one row per entry of `rows_of`, which maps a prompt to its row.
    """

    path: Float[Tensor, "n k *size"]
    times: tuple[float, ...]
    prompt_rows: Tensor
    conditions: Condition
    empty: Condition

    @classmethod
    def read(
        cls,
        files: Iterable[Path],
        times: Sequence[float],
        conditions: Condition,
        rows_of: Mapping[str, int],
        empty: Condition,
    ) -> "PathSource":
        """Read the states at `times` from files; raises ValueError where a file lacks one."""
        paths, rows = [], []
        for file in files:
            with safe_open(file, framework="pt") as opened:
                kept = opened.get_tensor("times")
                places = [int((kept - t).abs().argmin()) for t in times]
                far = [t for t, i in zip(times, places, strict=True) if abs(kept[i] - t) > 2e-3]
                if far:
                    known = ", ".join(f"{t:.3g}" for t in kept.tolist())
                    raise ValueError(f"{file.name} has no states at {far}: it has them at {known}")
                paths.append(opened.get_tensor("path")[:, places])
            rows += [rows_of[prompt] for prompt in read_prompts(file)]
        if not paths:
            raise ValueError("no files of paths: make them first")
        return cls(torch.cat(paths), tuple(times), torch.tensor(rows), conditions, empty)

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Return a batch of paths with their noise, ends and conditions."""
        rows = torch.randint(len(self.path), (size,), generator=generator)
        path = self.path[rows].float()
        which = self.prompt_rows[rows]
        return Batch(
            noise=path[:, 0],
            condition={name: value[which] for name, value in self.conditions.items()},
            empty=self.empty,
            data=path[:, -1],
            path=path,
            times=self.times,
        )
