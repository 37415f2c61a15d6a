"""Which of how many processes this is, under torchrun or accelerate launch.

Read from RANK, WORLD_SIZE and LOCAL_RANK, which both launchers set; no process group is opened,
for the processes have nothing to say to each other. Known traps: `accelerate launch --cpu` starts
one process whatever --num_processes says, and a launcher's processes that all believe to be rank 0
of 1 would do everything twice; here the second is refused, because the folder has its run.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from skipstep.plugins.errors import PluginError

__all__ = ["Rank", "read_rank"]


@dataclass(frozen=True, slots=True)
class Rank:
    """One process of `world`; `local` counts those of one machine. `note` is for the user."""

    number: int = 0
    world: int = 1
    local: int = 0
    note: str | None = None


def read_rank(environment: Mapping[str, str] = os.environ) -> Rank:
    """Return what the launcher says.

    >>> read_rank({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    Rank(number=3, world=8, local=1, note=None)

    Raises PluginError if it contradicts itself.
    """
    given = {name: environment[name] for name in ("RANK", "WORLD_SIZE") if environment.get(name)}
    if not given:
        note = None
        if "ACCELERATE_USE_CPU" in environment:
            note = (
                "accelerate launched a single process (with --cpu it always does): for several use "
                "torchrun --nproc-per-node N, or --workers N without a launcher"
            )
        return Rank(note=note)
    words = ", ".join(f"{name}={value}" for name, value in given.items())
    try:
        number, world = int(given["RANK"]), int(given["WORLD_SIZE"])
        local = int(environment.get("LOCAL_RANK") or number)
    except (KeyError, ValueError):
        raise PluginError(
            f"the launcher set {words}: RANK and WORLD_SIZE must both be whole numbers; unset them "
            "to run alone"
        ) from None
    if not 0 <= number < world:
        raise PluginError(f"the launcher set {words}: RANK must be 0 to WORLD_SIZE - 1")
    return Rank(number, world, local)
