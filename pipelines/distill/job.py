"""A distillation from a YAML file: paths of the teacher, training, and the student's folder.

    version: 1
    recipe: {name: trajectory, options: {at: [1, 0.75, 0.5, 0.25, 0]}}
    teacher: {guidance: 3.0, steps: 12, paths: 1024}
    training: {minutes: 40, batch: 64}

Without `prompts` the reference model's captions are drawn at random, held-out pairs left out. A
recipe that needs no paths gets the teacher's samples as its data, so no pictures are needed. Paths
and training both go on where they were stopped.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor
from tqdm.auto import tqdm

from skipstep.pipelines.distill.conditions import Recorded, record
from skipstep.plugins.errors import BadOption, PluginError
from skipstep.plugins.fingerprint import fingerprint
from skipstep.plugins.recipe import read_yaml
from skipstep.samplers.distill.anchor import anchored_path
from skipstep.samplers.distill.catalog import load_recipe
from skipstep.samplers.distill.flow import Guided
from skipstep.samplers.distill.networks import Flow
from skipstep.samplers.distill.paths import PathSource, read_prompts, teacher_path, write_paths
from skipstep.samplers.distill.protocol import Distiller
from skipstep.samplers.distill.student import Student, scheduler_options, write_student
from skipstep.samplers.distill.trainer import MakeOptimizers, Trainer, Training
from skipstep.samplers.distill.walk import shifted_nodes

__all__ = ["DistillJob", "Teacher", "distill", "read_job"]

SHARD = 64
STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Named:
    """A recipe by name."""

    name: str
    options: Annotated[dict[str, Any], Field(default_factory=dict)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Teacher:
    """How the teacher's paths are walked, and how many of them."""

    guidance: Annotated[float, Field(ge=1, description="scale that the student has folded in")] = (
        3.0
    )
    steps: Annotated[int, Field(ge=1, description="teacher steps of a path")] = 12
    paths: Annotated[int, Field(ge=1, description="paths to keep")] = 1024
    batch: Annotated[int, Field(ge=1, description="paths walked together")] = 32
    anchor: Annotated[
        int, Field(ge=0, description="updates a step that bring the guided path back (anchor.py)")
    ] = 0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DistillJob:
    """What one run of `skipstep distill` does."""

    version: Annotated[int, Field(ge=1, le=1)]
    recipe: Named
    steps: Annotated[int, Field(ge=1, description="steps the student takes")] = 4
    teacher: Annotated[Teacher, Field(default_factory=Teacher)]
    training: Annotated[Training, Field(default_factory=Training)]
    prompts: Annotated[list[str] | None, Field(description="texts to learn on")] = None
    muon: Annotated[
        bool, Field(description="Muon for the blocks' matrices, AdamW for the rest")
    ] = False

    def distiller(self) -> Distiller:
        """Return the recipe; raises BadOption where it, or one of its options, is unknown."""
        try:
            found = load_recipe(self.recipe.name, self.recipe.options)
            found.nodes(self.steps)
        except ValueError as error:
            raise BadOption(f"distill: {error}") from None
        if found.is_map or self.recipe.name == "caf":
            raise BadOption(
                f"distill: {self.recipe.name} trains a network of two times or inputs, which no "
                "diffusers denoiser is; use it on own modules (Trainer), or choose another recipe"
            )
        return found


def read_job(path: Path) -> DistillJob:
    """Read a job; raises PluginError with the file and what is wrong with it."""
    content = read_yaml(path)
    if not isinstance(content, Mapping):
        raise PluginError(f"{path}: a distillation is a mapping with version, recipe, training")
    try:
        job = TypeAdapter(DistillJob).validate_python(dict(content))
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}"
            for each in error.errors(include_url=False)[:3]
        )
        raise PluginError(f"{path}: {told}") from None
    job.distiller()
    return job


def distill(
    job: DistillJob, pipe: Any, folder: Path, *, optimizers: MakeOptimizers | None = None
) -> Student:
    """Run a job on a pipeline and return what was written to `folder`.

    `folder` holds `paths/`, `run/` (checkpoint, log, samples) and the student's two files.
    """
    recipe = job.distiller()
    folder.mkdir(parents=True, exist_ok=True)
    files = walk_paths(job, pipe, folder / "paths")
    prompts = sorted({prompt for file in files for prompt in read_prompts(file)})
    found = record(pipe, prompts)
    times = times_needed(recipe, job)
    rows = {prompt: row for row, prompt in enumerate(prompts)}
    source = PathSource.read(files, times, found.condition, rows, found.empty)
    module = found.denoiser.inner
    teacher = Guided(Flow(module, found.bridge), job.teacher.guidance, found.empty)
    run = folder / "run"
    run.mkdir(exist_ok=True)
    trainer = Trainer(
        recipe,
        module,
        source,
        job.training,
        bridge=found.bridge,
        teacher=teacher,
        folder=run,
        optimizers=optimizers,
    )
    student = Student(
        recipe={"name": job.recipe.name, "options": dict(job.recipe.options)},
        guidance=job.teacher.guidance,
        adapter=recipe.adapter,
        scheduler=scheduler_options(
            found.bridge, [list(recipe.scheduler_nodes(job.steps))], recipe.gamma
        ),
        fingerprint=fingerprint(pipe),
    )

    def sample(trainer: Trainer) -> None:
        """Write the student as it is now, and a picture of it."""
        write_student(folder, student, trainer.student_tensors())
        draw(pipe, folder, run / f"{trainer.state.iteration:06d}.png", prompts)

    trainer.run(sample)
    done = {"iterations": trainer.state.iteration, "seconds": round(trainer.state.seconds)}
    student = Student(**{**vars(student), "training": {**done, "paths": len(source.path)}})
    write_student(folder, student, trainer.student_tensors())
    return student


def times_needed(recipe: Distiller, job: DistillJob) -> tuple[float, ...]:
    """Return the times of a path that the recipe looks at."""
    if "path" in recipe.needs and recipe.name in ("trajectory", "rayflow"):
        return recipe.nodes(job.steps) if recipe.name == "trajectory" else shifted_nodes(4)
    return (1.0, 0.0)


def walk_paths(job: DistillJob, pipe: Any, folder: Path) -> list[Path]:
    """Walk the paths that are not there yet; return all files."""
    folder.mkdir(exist_ok=True)
    wanted = -(-job.teacher.paths // SHARD)
    files = [folder / f"{number:05d}.safetensors" for number in range(wanted)]
    times = shifted_nodes(job.teacher.steps)
    for number, file in enumerate(tqdm(files, disable=None, unit="shard", desc="teacher")):
        if file.exists():
            continue
        generator = torch.Generator().manual_seed(1_000_000 + number)
        prompts = job.prompts or reference_captions()
        rows = torch.randint(len(prompts), (SHARD,), generator=generator).tolist()
        texts = [prompts[row] for row in rows]
        found = record(pipe, texts)
        paths = _walk(job, found, generator)
        write_paths(file, paths, times, texts)
    return files


def _walk(job: DistillJob, found: Recorded, generator: torch.Generator) -> Tensor:
    module, times = found.denoiser.inner, shifted_nodes(job.teacher.steps)
    teacher = Guided(Flow(module, found.bridge), job.teacher.guidance, found.empty)
    parts = []
    for begin in range(0, SHARD, job.teacher.batch):
        rows = slice(begin, min(begin + job.teacher.batch, SHARD))
        condition = {name: value[rows] for name, value in found.condition.items()}
        count = rows.stop - rows.start
        noise = torch.randn(count, *found.shape, generator=generator)
        like = next(module.parameters())
        if job.teacher.anchor:
            path = anchored_path(
                teacher.flow,
                noise.to(like),
                times,
                condition,
                found.empty,
                scale=teacher.scale,
                updates=job.teacher.anchor,
            )
        else:
            path = teacher_path(teacher, noise.to(like), times, condition)
        parts.append(path.float().cpu())
    return torch.cat(parts)


def reference_captions() -> Sequence[str]:
    """Return captions of the reference model's trained pairs, on every background."""
    from skipstep.pipelines.reference.captions import STYLES, TAUGHT, held_out_style
    from skipstep.pipelines.reference.examples import BACKGROUNDS, caption_forms

    return [
        form
        for name in sorted(TAUGHT)
        for style in STYLES
        if held_out_style(name) != style
        for background in BACKGROUNDS
        for form in caption_forms(name, style, background)
    ]


def draw(pipe: Any, folder: Path, file: Path, prompts: Sequence[str]) -> None:
    """Write one picture of the student, made through its plugin; a clip moves in its PNG."""
    with pipe.plugins({"name": "few_step", "options": {"weights": str(folder)}}):
        generator = torch.Generator().manual_seed(0)
        made = pipe(prompts[0], generator=generator, output_type="pil")
    first, *more = made.frames[0] if "frames" in made else made.images[:1]
    first.save(file, save_all=bool(more), append_images=more)
