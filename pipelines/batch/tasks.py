"""What a job can make of its rows, and with what each task is opened.

pictures      prompts -> pictures or clips                       drawing.py
compare       prompts -> uncached and accelerated, with figures  comparing.py
reconstruct   folders of photographs -> 3D Gaussians             rebuilding.py
"""

from pathlib import Path
from typing import Any, Literal

from skipstep.pipelines.batch.making import Task

__all__ = ["TaskName", "open_task"]

TaskName = Literal["pictures", "compare", "reconstruct"]


def open_task(job: dict[str, Any], pipe: Any, source: Path) -> Task:
    """Return the task of a job.

    Args:
        job: the settings in its plan.
        pipe: the pipeline.
        source: the file of rows.
    """
    noted = {"model": job["model"], "metadata": job["metadata"]}
    match job["task"]:
        case "reconstruct":
            from skipstep.pipelines.batch.rebuilding import Rebuilding

            return Rebuilding(pipe, source.parent, **noted)
        case "compare":
            from skipstep.pipelines.batch.comparing import Comparing

            return Comparing(pipe, job["arms"], clips=job["clips"], **noted)
        case _:
            from skipstep.pipelines.batch.drawing import Drawing

            return Drawing(pipe, clips=job["clips"], **noted)
