"""A student in one call: what a run exchanges, what it refuses, and that all of it comes back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Conv2d, Linear

from skipstep.pipelines.distill.conditions import Recorded, record
from skipstep.plugins.errors import BadOption, Incompatible
from skipstep.plugins.fingerprint import fingerprint
from skipstep.samplers.distill.catalog import load_recipe
from skipstep.samplers.distill.flow import Guided
from skipstep.samplers.distill.networks import Flow, difference
from skipstep.samplers.distill.paths import PathSource
from skipstep.samplers.distill.student import Student, scheduler_options, write_student
from skipstep.samplers.distill.trainer import Trainer, Training
from skipstep.samplers.distill.walk import walk
from skipstep.testing import Tiny, run, tiny_pipeline

FAMILIES = ("pixart", "sd3", "sd15", "wan")
NODES = [[1.0, 0.6, 0.0], [1.0, 0.75, 0.5, 0.25, 0.0], [1.0, 0.0]]


def recorded(tiny: Tiny) -> Recorded:
    return record(tiny.pipe, list(tiny.prompts[:2]), tiny.call)


def student_of(tiny: Tiny, folder: Path, **over: Any) -> str:
    """Write a student that adds noise to two weights, to one of them as LoRA factors."""
    module = getattr(tiny.pipe, tiny.denoiser)
    named = [(name, p) for name, p in module.named_parameters() if p.ndim == 2]
    (first, a), (second, b) = named[0], named[-1]
    generator = torch.Generator().manual_seed(0)
    added = {
        first: torch.randn(a.shape, generator=generator).half(),
        f"{second}.lora_A": torch.randn(2, b.shape[1], generator=generator).half(),
        f"{second}.lora_B": torch.randn(b.shape[0], 2, generator=generator).half(),
    }
    student = Student(
        recipe={"name": "trajectory"},
        guidance=3.0,
        scheduler=scheduler_options(recorded(tiny).bridge, NODES, 0.0),
        fingerprint=fingerprint(tiny.pipe) | over,
    )
    write_student(folder, student, added)
    return str(folder)


def tensors(tiny: Tiny) -> dict[str, tuple[int, Tensor]]:
    """Return where every weight lies and what it holds."""
    module = getattr(tiny.pipe, tiny.denoiser)
    return {n: (p.data_ptr(), p.detach().clone()) for n, p in module.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_runs_and_leaves_no_trace(family: str, tmp_path: Path) -> None:
    tiny = tiny_pipeline(family)
    weights = student_of(tiny, tmp_path)
    plain, before, scheduler = run(tiny), tensors(tiny), tiny.pipe.scheduler
    tiny.pipe.enable_plugin("few_step", weights=weights)
    assert tensors(tiny).keys() == before.keys()
    changed = run(tiny, steps=2)
    assert torch.isfinite(changed).all() and not torch.equal(changed, plain)
    after = tensors(tiny)
    for name, (place, value) in before.items():
        assert after[name][0] == place and torch.equal(after[name][1], value)
    assert tiny.pipe.scheduler is scheduler
    with tiny.pipe.plugins_off():
        assert torch.equal(run(tiny), plain)
    tiny.pipe.disable_plugins()
    assert torch.equal(run(tiny), plain)


def test_steps_and_guidance_are_the_students_where_the_call_says_nothing(tmp_path: Path) -> None:
    tiny = tiny_pipeline("pixart")
    tiny.pipe.enable_plugin("few_step", weights=student_of(tiny, tmp_path))
    rows: list[int] = []
    hook = tiny.pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs.get("hidden_states", args[:1]))),
        with_kwargs=True,
    )
    call = {k: v for k, v in tiny.call.items() if k != "guidance_scale"}
    tiny.pipe("a red fox", output_type="latent", **call)
    assert len(rows) == 2
    report = tiny.pipe.plugin_report()
    assert not report.warnings
    call |= {"guidance_scale": 4.0, "num_inference_steps": 1}
    tiny.pipe("a red fox", output_type="latent", **call)
    hook.remove()
    assert len(rows) == 3
    assert "guidance_scale=4 guides a student that has 3 folded in" in " ".join(
        tiny.pipe.plugin_report().warnings
    )


def test_weights_come_back_when_a_run_fails(tmp_path: Path) -> None:
    tiny = tiny_pipeline("pixart")
    tiny.pipe.enable_plugin("few_step", weights=student_of(tiny, tmp_path))
    before = tensors(tiny)

    def fail(*_: Any) -> None:
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        run(tiny, steps=2, callback=fail, callback_steps=1)
    assert all(tensors(tiny)[name][0] == place for name, (place, _) in before.items())


def test_another_number_of_steps_is_refused(tmp_path: Path) -> None:
    tiny = tiny_pipeline("pixart")
    tiny.pipe.enable_plugin("few_step", weights=student_of(tiny, tmp_path))
    with pytest.raises(ValueError, match="this student was taught 2 or 4 or 1 steps"):
        run(tiny, steps=3)


def test_another_model_and_another_folder_are_refused(tmp_path: Path) -> None:
    tiny = tiny_pipeline("pixart")
    weights = student_of(tiny, tmp_path, denoisers=["Other 123"])
    with pytest.raises(Incompatible, match="the student was made for another model"):
        tiny.pipe.enable_plugin("few_step", weights=weights)
    with pytest.raises(BadOption, match="no few_step.json and no student.safetensors there"):
        tiny.pipe.enable_plugin("few_step", weights=str(tmp_path / "nothing"))
    with pytest.raises(Incompatible, match="made for another model"):
        tiny.pipe.enable_plugin("few_step", weights="reference-4")


def test_a_student_and_another_scheduler_exclude_each_other(tmp_path: Path) -> None:
    tiny = tiny_pipeline("pixart")
    tiny.pipe.enable_plugin("scheduler", scheduler="DPMSolverMultistepScheduler")
    weights = student_of(tiny, tmp_path)
    with pytest.raises(Incompatible, match="two of one kind do not combine"):
        tiny.pipe.enable_plugin("few_step", weights=weights)
    tiny.pipe.enable_plugin("few_step", weights=weights, replace=True)
    assert torch.isfinite(run(tiny, steps=2)).all()


@pytest.mark.parametrize("first", ["few_step", "fora"])
def test_a_cache_serves_the_student_in_either_order(first: str, tmp_path: Path) -> None:
    tiny = tiny_pipeline("pixart")
    weights = student_of(tiny, tmp_path)
    tiny.pipe.enable_plugin("few_step", weights=weights)
    alone = run(tiny, steps=4)
    tiny.pipe.disable_plugins()
    plugins: dict[str, dict[str, Any]] = {
        "few_step": {"weights": weights},
        "fora": {"interval": 2, "warmup_steps": 1},
    }
    for name in sorted(plugins, key=lambda each: each != first):
        tiny.pipe.enable_plugin(name, **plugins[name])
    together = run(tiny, steps=4)
    skipped = [c for call in tiny.pipe.plugin_report().calls for c in call.choices if not c.compute]
    assert skipped and not torch.equal(together, alone)
    tiny.pipe.disable_plugin("fora")
    assert torch.equal(run(tiny, steps=4), alone)


def test_a_users_lora_stays_under_the_student(tmp_path: Path) -> None:
    from peft import LoraConfig

    tiny = tiny_pipeline("sd3")
    weights = student_of(tiny, tmp_path)
    config = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    tiny.pipe.transformer.add_adapter(config, adapter_name="mine")
    plain = run(tiny)
    tiny.pipe.enable_plugin("few_step", weights=weights)
    assert torch.isfinite(run(tiny, steps=2)).all()
    tiny.pipe.disable_plugins()
    assert torch.equal(run(tiny), plain)


@pytest.mark.parametrize("family", ["sd3", "wan"])
def test_recorded_conditions_walk_as_the_pipeline_does(family: str) -> None:
    """Guidance in one batch (SD3) and in two calls (Wan); the flow's Euler steps are theirs."""
    tiny = tiny_pipeline(family)
    found = recorded(tiny)
    noise = torch.randn(2, *found.shape, generator=torch.Generator().manual_seed(0))
    scale = tiny.call["guidance_scale"]
    tiny.pipe.enable_plugin("scheduler", scheduler="FlowMatchEulerDiscreteScheduler")
    sigmas: list[float] = []

    def look(pipe: Any, *_: Any) -> dict[str, Any]:
        sigmas[:] = [float(s) for s in pipe.scheduler.sigmas]
        return {}

    call = {**tiny.call, "latents": noise, "output_type": "latent"}
    made = tiny.pipe(
        list(tiny.prompts[:2]), num_inference_steps=3, callback_on_step_end=look, **call
    )[0]
    flow = Guided(Flow(found.denoiser.inner, found.bridge), scale, found.empty)
    with torch.no_grad():
        walked = walk(flow, noise, sigmas, found.condition)
    torch.testing.assert_close(walked, made, rtol=2e-3, atol=2e-3)


# Students that are more than weights.


def speedup_of(tiny: Tiny, folder: Path, strength: float = 0.1) -> str:
    """Write a SpeedUpNet student whose adapter is `strength` away from identity."""
    found = recorded(tiny)
    recipe = load_recipe("speedup", {"steps": 2})
    added = difference(recipe.trained(found.denoiser.inner, lora_rank=0), found.denoiser.inner)
    generator = torch.Generator().manual_seed(0)
    for name, value in added.items():
        if name.endswith((".scale", ".shift")):
            value.add_(strength * torch.randn(value.shape, generator=generator))
    student = Student(
        recipe={"name": "speedup", "options": {"steps": 2}},
        guidance=3.0,
        adapter="speedup",
        scheduler=scheduler_options(found.bridge, NODES[:1], 0.0),
        fingerprint=fingerprint(tiny.pipe),
    )
    write_student(folder, student, added)
    return str(folder)


@pytest.mark.parametrize("family", ["pixart", "sd15"])
def test_an_adapter_guides_in_one_pass_and_leaves_no_trace(family: str, tmp_path: Path) -> None:
    tiny = tiny_pipeline(family)
    plain, module = run(tiny), getattr(tiny.pipe, tiny.denoiser)
    names = set(dict(module.named_modules()))
    tiny.pipe.enable_plugin("few_step", weights=speedup_of(tiny, tmp_path))
    rows: list[int] = []
    first = next(part for part in module.modules() if isinstance(part, Linear | Conv2d))
    hook = first.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    call = {k: v for k, v in tiny.call.items() if k not in ("guidance_scale", "negative_prompt")}
    pictures = [
        tiny.pipe(
            "a red fox", negative_prompt=negative, output_type="latent",
            generator=torch.Generator().manual_seed(0), **call | {"guidance_scale": scale},
        )[0]
        for negative, scale in (("blue", 3.0), ("blue", 7.0), ("a green tree", 3.0))
    ]  # fmt: skip
    hook.remove()
    assert rows == [1] * 6
    assert torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[0], pictures[2])
    assert set(dict(module.named_modules())) == names
    with pytest.raises(Incompatible, match="guidance_scale=1 keeps the pipeline from reading"):
        run(tiny, steps=2, guidance_scale=1.0)
    tiny.pipe.disable_plugins()
    assert torch.equal(run(tiny), plain)


def test_an_adapter_that_has_learned_nothing_is_the_conditional_pass(tmp_path: Path) -> None:
    tiny = tiny_pipeline("pixart")
    scheduler = scheduler_options(recorded(tiny).bridge, NODES[:1], 0.0)
    nothing = Student(
        recipe={"name": "guidance"}, guidance=3.0, scheduler=scheduler,
        fingerprint=fingerprint(tiny.pipe),
    )  # fmt: skip
    write_student(tmp_path / "nothing", nothing, {})
    tiny.pipe.enable_plugin("few_step", weights=str(tmp_path / "nothing"))
    conditional = run(tiny, steps=2, guidance_scale=1.0)
    weights = speedup_of(tiny, tmp_path / "adapter", strength=0.0)
    tiny.pipe.enable_plugin("few_step", weights=weights)
    torch.testing.assert_close(run(tiny, steps=2), conditional, rtol=0, atol=1e-3)


def test_a_cache_serves_an_adapter(tmp_path: Path) -> None:
    tiny = tiny_pipeline("pixart")
    tiny.pipe.enable_plugin("few_step", weights=speedup_of(tiny, tmp_path))
    alone = run(tiny, steps=2)
    tiny.pipe.enable_plugin("fora", interval=2, warmup_steps=1)
    together = run(tiny, steps=2)
    skipped = [c for call in tiny.pipe.plugin_report().calls for c in call.choices if not c.compute]
    assert skipped and not torch.equal(together, alone)


def test_an_adapter_of_other_layers_and_split_guidance_are_refused(tmp_path: Path) -> None:
    tiny = tiny_pipeline("pixart")
    folder = Path(speedup_of(tiny, tmp_path))
    tensors_ = load_file(folder / "student.safetensors")
    name = next(iter(tensors_))
    save_file({k: v for k, v in tensors_.items() if k != name}, folder / "student.safetensors")
    with pytest.raises(Incompatible, match=f"{name} .and 0 more. is in only one of them"):
        tiny.pipe.enable_plugin("few_step", weights=str(folder))
    wan = tiny_pipeline("wan")
    content = json.loads((folder / "few_step.json").read_text()) | {
        "fingerprint": fingerprint(wan.pipe)
    }
    (folder / "few_step.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(Incompatible, match="no cross-attention of its own"):
        wan.pipe.enable_plugin("few_step", weights=str(folder))


def test_a_causal_student_makes_its_clip_inside_one_call(tmp_path: Path) -> None:
    tiny = tiny_pipeline("wan")
    plain, found = run(tiny), recorded(tiny)
    module = found.denoiser.inner
    options = {"steps": 2, "chunk": 1, "window": 2, "fake_updates": 1, "forced_updates": 1}
    recipe = load_recipe("self_forcing", options)
    source = PathSource(
        torch.randn(2, 2, *found.shape), (1.0, 0.0), torch.arange(2), found.condition, found.empty
    )
    trainer = Trainer(
        recipe, module, source, Training(iterations=3, batch=1, warmup=0), bridge=found.bridge
    )
    trainer.run()
    assert trainer.state.updates == 2, "one behind true chunks, one of the fake, one behind its own"
    student = Student(
        recipe={"name": "self_forcing", "options": options},
        guidance=1.0,
        adapter="causal",
        scheduler=scheduler_options(found.bridge, [list(recipe.scheduler_nodes(2))], 0.0),
        fingerprint=fingerprint(tiny.pipe),
    )
    write_student(tmp_path, student, trainer.student_tensors())
    calls: list[int] = []
    module.get_submodule("patch_embedding").register_forward_pre_hook(
        lambda _, args: calls.append(args[0].shape[2])
    )
    call = {k: v for k, v in tiny.call.items() if k != "guidance_scale"} | {"output_type": "latent"}
    noise = torch.randn(1, *found.shape, generator=torch.Generator().manual_seed(4))
    tiny.pipe.enable_plugin("few_step", weights=str(tmp_path))
    made = tiny.pipe(
        "a red fox", latents=noise, generator=torch.Generator().manual_seed(5), **call
    )[0]
    assert calls == 3 * found.shape[1] * [1], "two steps and one pass to remember, a frame"
    average = Flow(trainer.modules["average"], found.bridge)
    condition = {name: value[:1] for name, value in record(
        tiny.pipe, ["a red fox"], tiny.call
    ).condition.items()}  # fmt: skip
    wanted = recipe.sample(average, noise, 2, condition, torch.Generator().manual_seed(5))
    torch.testing.assert_close(made, wanted, rtol=2e-2, atol=2e-2)
    tiny.pipe.disable_plugins()
    assert torch.equal(run(tiny), plain)
