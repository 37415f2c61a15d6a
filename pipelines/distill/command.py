"""`skipstep distill`: train a few-step student and write what switches it on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipstep.pipelines.cli.options import Device, Dtype, Model, Threads, load

if TYPE_CHECKING:
    from skipstep.pipelines.distill.job import DistillJob

__all__ = ["distill"]


def distill(
    job: Annotated[Path, typer.Argument(help="A distillation (YAML).", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the student.")] = Path(
        "out/student"
    ),
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
) -> None:
    """Train a few-step student; stopped, the same command goes on where it ended."""
    from skipstep.pipelines.distill.job import distill as train
    from skipstep.pipelines.distill.job import read_job

    wanted = read_job(job)
    pipe, _ = load(model, device, dtype, threads, size=None, guidance=None)
    student = train(wanted, pipe, output, optimizers=_muon(wanted) if wanted.muon else None)
    done = student.training
    typer.echo(
        f"{student.steps}-step student by {wanted.recipe.name} after {done['iterations']} "
        f"iterations on {done['paths']} paths: {output}\n"
        f'Use it: pipe.enable_plugin("few_step", weights="{output}")'
    )


def _muon(job: "DistillJob") -> Any:
    from torch import Tensor, nn, optim

    from skipstep.pipelines.reference.muon import Muon
    from skipstep.samplers.distill.networks import trained_parameters

    rate = job.training.rate

    def make(module: nn.Module) -> list[optim.Optimizer]:
        named = trained_parameters(module)
        inside = {n for n, p in named.items() if p.ndim == 2 and "blocks." in n}
        matrices: list[Tensor] = [p for name, p in named.items() if name in inside]
        others = [p for name, p in named.items() if name not in inside]
        rest = optim.AdamW(others, lr=0.6 * rate, betas=(0.9, 0.97), weight_decay=0.0)
        return [Muon(matrices, lr=rate, weight_decay=0.0), rest]

    return make
