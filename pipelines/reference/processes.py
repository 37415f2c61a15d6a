"""Say how many processes share a training step; Muon splits its work among them.

One process, unless several were started with `accelerate launch` or torchrun.
"""

import torch.distributed as dist

__all__ = ["process_count", "rank"]


def process_count() -> int:
    """Return the number of processes that share a step."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number; the process 0 logs and saves."""
    return dist.get_rank() if dist.is_initialized() else 0
