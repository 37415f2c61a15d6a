"""A student on disk: `few_step.json`, what it is, and `student.safetensors`, what it adds."""

import json
import os
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass
from safetensors.torch import save_file
from torch import Tensor

from skipstep.samplers.distill.flow import DenoiserBridge
from skipstep.samplers.distill.protocol import Adapter

__all__ = ["JSON", "TENSORS", "Student", "scheduler_options", "write_student"]

JSON, TENSORS = "few_step.json", "student.safetensors"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Student:
    """What `few_step.json` holds.

    `adapter` names what the student has beside weights: "speedup" (speedup.py) or "causal"
    (causal.py).

    `scheduler` are FewStepScheduler's options, `nodes` among them; `guidance` is the scale that is
    folded in; `fingerprint` says which model it adds to; `measured` is for the reader.
    """

    kind: Literal["few_step"] = "few_step"
    version: Literal[1] = 1
    recipe: dict[str, Any]
    guidance: float
    adapter: Adapter | None = None
    scheduler: dict[str, Any]
    fingerprint: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Return the number of steps taken where a call does not say."""
        return len(self.scheduler["nodes"][0]) - 1


def scheduler_options(
    bridge: DenoiserBridge, nodes: list[list[float]], gamma: float
) -> dict[str, Any]:
    """Return the options of FewStepScheduler for a student of this denoiser."""
    alphas = bridge.alphas_cumprod
    return {
        "nodes": nodes,
        "prediction_type": bridge.prediction,
        "gamma": gamma,
        "alphas_cumprod": None if alphas is None else alphas.tolist(),
        "time_scale": bridge.time_scale,
    }


def write_student(folder: Path, student: Student, added: dict[str, Tensor]) -> None:
    """Write a student's two files, replacing those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{TENSORS}.partial"
    save_file(added, partial)
    os.replace(partial, folder / TENSORS)
    content = TypeAdapter(Student).dump_python(student, mode="json")
    (folder / JSON).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
