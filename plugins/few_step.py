"""A student in one call: `enable_plugin("few_step", weights="reference-4")`.

A student is a folder of two files that `skipstep distill` writes: `few_step.json`, what it is and
what it was made for, and `student.safetensors`, what it adds to the weights of the model it was
distilled from. During a run the denoiser's tensors are exchanged for the sums, the scheduler for
the student's, and the number of steps and guidance are the student's where the call says nothing.
After the run the very tensors of before are back in place, so a saved pipeline never holds a
student, and disabling is bit-exact. A student may be an adapter beside the weights
(speedup_call.py) or make its frames in order (causal_call.py); the folder says so.
"""

import functools
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file
from torch import Tensor, nn

from skipstep.files.artefact import load_artefact
from skipstep.plugins.causal_call import attach_causal
from skipstep.plugins.errors import Incompatible
from skipstep.plugins.fingerprint import mismatches
from skipstep.plugins.profile import Denoiser
from skipstep.plugins.report import Report
from skipstep.plugins.run import Run
from skipstep.plugins.speedup_call import attach_speedup
from skipstep.samplers.base import SamplerPlugin
from skipstep.samplers.distill.scheduler import FewStepScheduler
from skipstep.samplers.distill.student import JSON, TENSORS, Student

__all__ = ["SHIPPED", "FewStep", "products", "student_folder", "taught_steps"]

# Students of the reference model come with the package.
SHIPPED = ("reference-4", "reference-2")


def student_folder(weights: str) -> Path:
    """Return a student's folder from its path, or from the name of one that is shipped."""
    if weights in SHIPPED:
        with resources.as_file(resources.files("skipstep.pipelines")) as package:
            return package / "reference" / "students" / weights
    folder = Path(weights).expanduser()
    missing = [name for name in (JSON, TENSORS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"weights={weights!r}: no {' and no '.join(missing)} there. Give a folder that "
            f"`skipstep distill` wrote, or one of the shipped students: {', '.join(SHIPPED)}"
        )
    return folder


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class FewStep(SamplerPlugin):
    """Run a distilled student of the pipeline's denoiser."""

    name: ClassVar[str] = "few_step"
    summary: ClassVar[str] = "A distilled student: few steps, guidance folded in."

    weights: Annotated[
        str, Field(description="folder of a student, or the name of a shipped one")
    ] = "reference-4"

    def __post_init__(self) -> None:
        student_folder(self.weights)

    def read(self) -> Student:
        """Return what the folder says of the student."""
        return load_artefact(student_folder(self.weights) / JSON, Student, kind="few_step")

    def only_steps(self) -> int | None:
        """Return the one number of steps that the student was taught, None where there are more."""
        student = self.read()
        return student.steps if len(student.scheduler["nodes"]) == 1 else None

    def build(self, scheduler: Any) -> FewStepScheduler:
        """Return the student's scheduler; the pipeline's own has no say."""
        built: FewStepScheduler = FewStepScheduler(**self.read().scheduler)
        return built

    def why_not(self, profile: Any) -> str | None:
        """Return why the student does not fit the pipeline's denoiser, or None."""
        if len(profile.denoisers) != 1:
            return f"a student has one denoiser and this pipeline has {len(profile.denoisers)}"
        denoiser = profile.denoisers[0]
        if denoiser.is_quantised:
            return f"{denoiser.name} is quantised, and a student adds to plain weights"
        return None

    def attach(self, site: Any) -> None:
        """Exchange the weights around every run; raises Incompatible for another model."""
        student, denoiser = self.read(), site.profile.denoisers[0]
        pipe = site.manager.pipe
        made_for = {k: v for k, v in student.fingerprint.items() if k == "denoisers"}
        unlike = mismatches(made_for, pipe)
        if unlike:
            raise Incompatible(
                f"few_step: the student was made for another model: {'; '.join(unlike)}. Distill "
                "one for this pipeline (skipstep distill)"
            )
        added = load_file(student_folder(self.weights) / TENSORS)
        if student.adapter == "speedup":
            attach_speedup(site, denoiser, added)
            site.default(num_inference_steps=student.steps, guidance_scale=student.guidance)
            return
        weights = _Weights(denoiser, added, self.weights)
        site.on_begin(lambda run: weights.put_on())
        site.on_end(lambda run: weights.take_off())
        if student.adapter == "causal":
            attach_causal(site, denoiser, student)
        site.default(num_inference_steps=student.steps, guidance_scale=1.0)
        site.on_report(functools.partial(_note, student))


def taught_steps(plugins: tuple[Any, ...]) -> int | None:
    """Return the number of steps of a student among the plugins, None where any will do.

    A schedule has one too, but skips steps of the plain run: it is held against as many.
    """
    students = (plugin for plugin in plugins if isinstance(plugin, FewStep))
    return next((student.only_steps() for student in students), None)


def _note(student: Student, run: Run, report: Report) -> None:
    asked = run.arguments.get("guidance_scale")
    if isinstance(asked, int | float) and asked > 1:
        report.warnings.append(
            f"few_step: guidance_scale={asked:g} guides a student that has {student.guidance:g} "
            "folded in already: twice the work and oversteered pictures. Leave it out"
        )


class _Weights:
    """The denoiser's tensors and the student's, exchanged by pointer."""

    def __init__(self, denoiser: Denoiser, added: dict[str, Tensor], source: str) -> None:
        self.parameters = _named(denoiser.inner)
        self.added = products(added)
        unknown = sorted(set(self.added) - set(self.parameters))
        if unknown:
            raise Incompatible(
                f"few_step: {source} adds to {unknown[0]} (and {len(unknown) - 1} more), which "
                f"{denoiser.class_name} does not have"
            )
        self.own: dict[str, Tensor] = {}
        self.sums: dict[str, tuple[tuple[Any, ...], Tensor]] = {}

    @torch.no_grad()
    def put_on(self) -> None:
        """Give the denoiser the sums; they are kept until its own tensors change."""
        for name, addition in self.added.items():
            parameter = self.parameters[name]
            base = parameter.data
            if base.is_meta:
                raise Incompatible(
                    f"few_step: {name} is offloaded to meta, so nothing can be added to it: use "
                    "enable_model_cpu_offload instead of sequential offload"
                )
            state = base.data_ptr(), base.device, base.dtype, parameter._version
            if name not in self.sums or self.sums[name][0] != state:
                total = base.float() + addition.to(base.device).float()
                self.sums[name] = state, total.to(base.dtype)
            self.own[name] = base
            parameter.data = self.sums[name][1]

    def take_off(self) -> None:
        """Give the denoiser its own tensors back."""
        while self.own:
            name, base = self.own.popitem()
            self.parameters[name].data = base


def _named(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return parameters by the names they have without LoRA adapters around them."""
    return {name.replace(".base_layer.", "."): p for name, p in module.named_parameters()}


def products(added: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return additions by parameter name; LoRA factors become their product."""
    whole = {name: value for name, value in added.items() if ".lora_" not in name}
    for name, a in added.items():
        if name.endswith(".lora_A"):
            target = name.removesuffix(".lora_A")
            whole[target] = added[f"{target}.lora_B"].float() @ a.float()
    return whole
