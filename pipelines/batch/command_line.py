"""The options of `skipstep batch`; what it does is in command.py, imported when it runs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from skipstep.pipelines.cli.options import (
    Device,
    Dtype,
    Guidance,
    Model,
    Plugins,
    Recipe,
    Size,
    Steps,
    Threads,
    model_name,
    use_threads,
)

__all__ = ["batch"]


def batch(
    prompts: Annotated[
        Path, typer.Argument(help=".jsonl, .csv, .txt or .parquet.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for pictures, books and report.")
    ] = Path("out/batch"),
    plugin: Plugins = None,
    recipe: Recipe = None,
    model: Model = None,
    steps: Steps = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the job, for rows without one.")] = 0,
    guidance: Guidance = None,
    size: Size = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in one pipeline call.")] = 1,
    shard_rows: Annotated[
        int, typer.Option(min=1, help="Rows in a shard: what a crash costs at most.")
    ] = 64,
    task: Annotated[
        str,
        typer.Option(
            help="pictures; compare (each -p is an arm beside the uncached picture); reconstruct "
            "(rows name folders of photographs)."
        ),
    ] = "pictures",
    kind: Annotated[
        str, typer.Option("--format", help="folder, webdataset (tars) or parquet.")
    ] = "folder",
    mode: Annotated[
        str, typer.Option(help="planned, seeded or solo: what stays the same (docs/batch.md).")
    ] = "planned",
    clips: Annotated[
        str, typer.Option("--clip-format", help="webp or mp4, for models of clips.")
    ] = "webp",
    metadata: Annotated[bool, typer.Option(help="Write into each file how it was made.")] = True,
    engine: Annotated[
        str, typer.Option(help="local, or ray (a cluster; extra `cluster`; RAY_ADDRESS names it).")
    ] = "local",
    workers: Annotated[
        int,
        typer.Option(
            min=0,
            help="Watched processes on this machine, 0: none but this one; with Ray its actors, 0: "
            "one for each GPU.",
        ),
    ] = 0,
    timeout: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds a batch may take in a worker.")
    ] = None,
    max_failures: Annotated[
        int | None, typer.Option(min=0, help="End when more rows have failed.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Refuse the file if one row is bad.")] = False,
    verify: Annotated[
        bool, typer.Option(help="Compare the hashes of what is there, not only the lengths.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option(help="Make shards with failed rows again.")] = False,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
) -> None:
    """Make a picture of every row of a file; run it again and it goes on where it ended."""
    from skipstep.pipelines.batch import command

    use_threads(threads, model)
    job = command.read_job(
        prompts=prompts,
        output=output,
        **command.read_recipes(task, [*([recipe] if recipe else []), *(plugin or [])]),
        steps=steps,
        seed=seed,
        guidance=guidance,
        size=size,
        batch_size=batch_size,
        shard_rows=shard_rows,
        task=task,
        kind=kind,
        mode=mode,
        clips=clips,
        metadata=metadata,
        model="reference" if model is None else model_name(model),
    )
    code = command.run(
        job,
        command.Loader(model, device, dtype, threads, job.task),
        is_terminal=sys.stderr.isatty(),
        engine=command.read_engine(engine),
        workers=workers,
        timeout=timeout,
        max_failures=max_failures,
        strict=strict,
        verify=verify,
        retry_failed=retry_failed,
    )
    raise typer.Exit(code)
