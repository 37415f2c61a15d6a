"""Share one training step between processes: mean gradients, equal decisions.

On a machine whose cores are shared, two processes of one thread each wait for each other once per
step, two threads of one process once per operation. Started with
  torchrun --nproc-per-node 2 -m skipstep.pipelines.reference.train
every process computes part of the batch, and all take the same optimizer step. Started plainly,
there is one process and nothing here communicates.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["agree", "average_gradients", "join", "process_count", "rank"]


def join() -> None:
    """Meet the other processes if torchrun started several, over gloo on the loopback interface."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")


def process_count() -> int:
    """Return the number of processes that share a step."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number; the process 0 logs and saves."""
    return dist.get_rank() if dist.is_initialized() else 0


def agree(*values: float) -> list[float]:
    """Return the means of `values` over the processes: wall clocks differ, decisions must not."""
    means = torch.tensor(values, dtype=torch.float64)
    if process_count() > 1:
        dist.all_reduce(means)
        means /= process_count()
    return [float(mean) for mean in means]


@torch.no_grad()
def average_gradients(parameters: list[Tensor]) -> None:
    """Replace the gradients of `parameters` by their means over the processes."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if process_count() == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= process_count()
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
