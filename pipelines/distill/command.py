"""What `skipstep distill` does: read a job, train, write the student, say how to switch it on."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn, optim

from skipstep.pipelines.distill.job import DistillJob, distill, read_job
from skipstep.samplers.distill.networks import trained_parameters

__all__ = ["run"]


def run(file: Path, pipe: Any, output: Path) -> str:
    """Run the job in `file` on a pipeline; return what to say."""
    job = read_job(file)
    student = distill(job, pipe, output, optimizers=_muon(job) if job.muon else None)
    done = student.training
    return (
        f"{student.steps}-step student by {job.recipe.name} after {done['iterations']} iterations "
        f"on {done['paths']} paths: {output}\n"
        f'Use it: pipe.enable_plugin("few_step", weights="{output}")'
    )


def _muon(job: DistillJob) -> Any:
    from skipstep.pipelines.reference.muon import Muon

    rate = job.training.rate

    def make(module: nn.Module) -> list[optim.Optimizer]:
        named = trained_parameters(module)
        inside = {n for n, p in named.items() if p.ndim == 2 and "blocks." in n}
        matrices: list[Tensor] = [p for name, p in named.items() if name in inside]
        others = [p for name, p in named.items() if name not in inside]
        rest = optim.AdamW(others, lr=0.6 * rate, betas=(0.9, 0.97), weight_decay=0.0)
        return [Muon(matrices, lr=rate, weight_decay=0.0), rest]

    return make
