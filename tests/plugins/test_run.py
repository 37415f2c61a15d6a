"""A run counts steps and guidance branches where the pipeline does not tell, for one call of it."""

import copy
import threading
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
)
from torch import Tensor, nn

from skipstep.plugins.errors import PipelineBusy
from skipstep.plugins.lifecycle import manager_of
from skipstep.plugins.run import Run, StepTap, current_run
from skipstep.testing import Tiny, run, tiny_pipeline

OPTIONS: dict[str, Any] = {"interval": 2, "warmup_steps": 1, "final_steps": 1}


def places(pipe: Any) -> list[tuple[int, int]]:
    """Return (step, branch) of every denoiser call of the last run."""
    return [(call.step, call.branch) for call in pipe.plugin_report().calls]


class Denoiser(nn.Module):
    """A denoiser of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return sample * self.weight + timestep.reshape(-1)[0] / 1000


class Toy(DiffusionPipeline):  # type: ignore[misc]
    """A pipeline whose loop steps its scheduler, copies of it, both, or nothing."""

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: nn.Module, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self, steps: int = 5, clocks: str = "own", branches: int = 1, at: float = 1.0
    ) -> Tensor:
        self.scheduler.set_timesteps(steps)
        copies = [copy.deepcopy(self.scheduler) for _ in range(2)]
        x = torch.full((1, 4), at)
        for t in self.scheduler.timesteps:
            velocity = sum(self.unet(x * (1 + branch), t) for branch in range(branches))
            following = x - 0.1 * velocity
            if clocks in ("own", "both"):
                following = self.scheduler.step(velocity, t, x).prev_sample
            if clocks in ("copies", "both"):
                following = [each.step(velocity, t, x).prev_sample for each in copies][0]
            x = following
        return x


@pytest.fixture
def toy() -> Toy:
    return Toy(Denoiser(), FlowMatchEulerDiscreteScheduler())


def cached(pipe: Any) -> Any:
    """Switch on a cache that skips at fixed steps."""
    return pipe.enable_plugin(
        "cache", gate="interval", span="output", warmup_steps=1, final_steps=1
    )


@pytest.mark.parametrize(
    ("family", "branches"), [("sdxl", 1), ("pixart", 1), ("wan", 2), ("qwenimage", 2), ("flux", 1)]
)
def test_every_step_and_branch_is_counted_once(family: str, branches: int) -> None:
    tiny = tiny_pipeline(family)
    tiny.pipe.enable_plugin("fora", **OPTIONS)
    run(tiny, steps=4)
    assert places(tiny.pipe) == [(step, branch) for step in range(4) for branch in range(branches)]
    assert tiny.pipe.plugin_report().steps == 4


@pytest.mark.parametrize("clocks", ["own", "copies", "both", "none"])
@pytest.mark.parametrize("branches", [1, 2])
def test_steps_are_counted_whatever_schedulers_the_loop_steps(
    toy: Toy, clocks: str, branches: int
) -> None:
    plain = toy(clocks=clocks, branches=branches)
    handle = cached(toy)
    toy(clocks=clocks, branches=branches)
    assert places(toy) == [(step, branch) for step in range(5) for branch in range(branches)]
    assert toy.plugin_report().steps == 5
    assert "." in next(iter(toy.plugin_report().timeline().values()))
    handle.detach()
    assert torch.equal(toy(clocks=clocks, branches=branches), plain)


def test_what_looked_like_steps_before_the_first_scheduler_step_is_forgotten() -> None:
    record = Run(object(), object(), {})
    assert record.enter("unet", {"timestep": 0}) == (0, 0)
    assert record.enter("unet", {"timestep": 999}) == (1, 0)
    record.advance()
    assert record.enter("unet", {"timestep": 0}) == (1, 0)
    assert record.enter("unet", {"timestep": 900}) == (1, 1)
    record.advance()
    record.advance()
    assert record.enter("unet", {"timestep": 900}) == (2, 0)
    assert record.finished == 2


def test_scheduler_steps_are_counted_where_nobody_watches_the_denoiser() -> None:
    record = Run(object(), object(), {})
    for _ in range(5):
        record.advance()
    assert record.finished == 5


def test_a_tap_leaves_with_its_run_and_copies_made_meanwhile_only_step() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    before = dict(vars(scheduler))
    record = Run(object(), object(), {})
    x = torch.zeros(1)
    with StepTap(scheduler, record).installed():
        scheduler.set_timesteps(3)
        twin = copy.deepcopy(scheduler)
        assert twin.step.scheduler is twin
        twin.step(x, twin.timesteps[0], x)
        assert record.finished == 1
        assert scheduler.step_index is None
        # This is how tiled pipelines keep one state per tile.
        state = copy.deepcopy(vars(scheduler))
        assert state["step"] == StepTap(scheduler, record).step
    assert set(vars(scheduler)) >= set(before) and "step" not in vars(scheduler)
    del record
    twin.step(x, twin.timesteps[1], x)
    assert twin.step_index == 2


def test_an_order_two_solver_counts_its_inner_steps() -> None:
    tiny = tiny_pipeline("sdxl")
    tiny.pipe.scheduler = HeunDiscreteScheduler.from_config(tiny.pipe.scheduler.config)
    tiny.pipe.enable_plugin("deepcache", interval=2)
    run(tiny, steps=4)
    report = tiny.pipe.plugin_report()
    assert [step for step, _ in places(tiny.pipe)] == list(range(7))
    assert report.steps == 7


def test_guidance_switched_off_mid_run_starts_a_memory_of_the_right_size() -> None:
    tiny = tiny_pipeline("sdxl")
    tiny.pipe.enable_plugin("deepcache", interval=4)

    def stop(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            pipe._guidance_scale = 1.0
            return {name: value.chunk(2)[-1] for name, value in given.items()}
        return {}

    names = ["prompt_embeds", "add_text_embeds", "add_time_ids"]
    over: dict[str, Any] = {
        "callback_on_step_end": stop,
        "callback_on_step_end_tensor_inputs": names,
    }
    assert torch.isfinite(run(tiny, steps=8, **over)).all()
    calls = tiny.pipe.plugin_report().calls
    assert [len(call.choices) for call in calls] == [2] * 3 + [1] * 5
    assert [call.choices[0].why for call in calls][3] == "shape"
    assert [call.mark for call in calls] == list("#..##...")


def test_guidance_switched_off_in_sequence_keeps_the_branch_that_stays() -> None:
    tiny = tiny_pipeline("wan")
    tiny.pipe.enable_plugin("fora", **OPTIONS)

    def stop(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            pipe._guidance_scale = 1.0
        return {}

    run(tiny, steps=5, callback_on_step_end=stop)
    assert places(tiny.pipe) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (3, 0), (4, 0)]


@pytest.mark.parametrize(("strength", "count"), [(1.0, 10), (0.5, 5), (0.3, 3)])
@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_the_last_step_of_img2img_is_known_from_its_strength(
    family: str, strength: float, count: int
) -> None:
    made = tiny_pipeline(family)
    image_to_image = {"sd15": StableDiffusionImg2ImgPipeline, "flux": FluxImg2ImgPipeline}[family]
    pipe = image_to_image.from_pipe(made.pipe)
    call = dict(made.call, image=torch.rand(1, 3, 32, 32), strength=strength)
    if family == "sd15":
        del call["height"], call["width"]
    tiny = Tiny(pipe, call, made.denoiser, made.guidance)
    seen: list[int] = []

    def look(*_: Any) -> dict[str, Any]:
        seen.append(run_of(pipe).count)
        return {}

    pipe.enable_plugin("cache", gate="interval", span="output", warmup_steps=1, final_steps=1)
    pipe.set_progress_bar_config(disable=True)
    run(tiny, steps=10, callback_on_step_end=look)
    assert set(seen) == {count}
    assert len(pipe.plugin_report().calls) == count
    whys = [call.choices[0].why for call in pipe.plugin_report().calls]
    assert whys[-1] == "final" and "final" not in whys[:-1]


def run_of(pipe: Any) -> Run:
    """Return the run of a pipeline that is in one."""
    found = current_run(manager_of(pipe))
    assert found is not None
    return found


def test_two_denoisers_in_turn_have_their_own_memories() -> None:
    tiny = tiny_pipeline("wan22")
    plain = run(tiny, steps=10)
    tiny.pipe.enable_plugin("fora", **OPTIONS)
    first = run(tiny, steps=10)
    calls = tiny.pipe.plugin_report().calls
    steps = {name: [c.step for c in calls if c.denoiser == name][::2] for name in NAMES}
    assert steps["transformer"] + steps["transformer_2"] == list(range(10))
    start = next(call for call in calls if call.denoiser == "transformer_2")
    assert start.choices[0].why == "first" and start.step > 0
    assert torch.equal(first, run(tiny, steps=10))
    tiny.pipe.disable_plugins()
    assert torch.equal(run(tiny, steps=10), plain)


NAMES = ("transformer", "transformer_2")


def test_a_denoiser_called_outside_a_pipeline_call_passes_through(toy: Toy) -> None:
    cached(toy)
    x = torch.ones(1, 4)
    expected = type(toy.unet).forward(toy.unet, x, torch.tensor(5.0))
    for _ in range(6):
        assert torch.equal(toy.unet(x, torch.tensor(5.0)), expected)
    assert toy.plugin_report() is None


def test_a_nested_call_has_a_run_of_its_own() -> None:
    tiny = tiny_pipeline("sdxl")
    tiny.pipe.enable_plugin("deepcache", interval=2)
    alone = run(tiny, steps=4, seed=3)
    inner: list[Tensor] = []

    def nest(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            scheduler = pipe.scheduler
            pipe.scheduler = copy.deepcopy(scheduler)
            inner.append(run(tiny_of(pipe, tiny), steps=4, seed=3))
            assert len(pipe.plugin_report().calls) == 4
            pipe.scheduler = scheduler
        return {}

    plain = run(tiny, steps=6)
    again = run(tiny, steps=6, callback_on_step_end=nest)
    assert torch.equal(inner[0], alone)
    assert torch.equal(again, plain)
    assert [step for step, _ in places(tiny.pipe)] == list(range(6))


def tiny_of(pipe: Any, like: Tiny) -> Tiny:
    return Tiny(pipe, like.call, like.denoiser, like.guidance, like.prompt_argument, like.prompts)


def test_pipelines_that_share_a_denoiser_do_not_touch_each_other(toy: Toy) -> None:
    other = Toy(toy.unet, FlowMatchEulerDiscreteScheduler())
    plain = other(steps=6)
    cached(toy)
    picture = toy(steps=6)
    assert not torch.equal(picture, plain)
    assert torch.equal(other(steps=6), plain)
    assert other.plugin_report() is None
    other.enable_plugin("easycache", threshold=0)
    assert torch.equal(other(steps=6), plain)
    assert torch.equal(toy(steps=6), picture)
    toy.disable_plugins()
    assert torch.equal(other(steps=6), plain)
    other.disable_plugins()
    assert "_compiled_call_impl" not in vars(toy.unet)


def test_a_plain_pipeline_of_a_class_with_plugins_stays_plain_inside_another_run(toy: Toy) -> None:
    elsewhere = Toy(Denoiser(), FlowMatchEulerDiscreteScheduler())
    cached(elsewhere)
    inside = Toy(toy.unet, FlowMatchEulerDiscreteScheduler())
    plain = inside(steps=6)
    seen = []

    class Outer(Toy):
        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            seen.append(inside(steps=6))
            return super().__call__(*args, **kwargs)

    outer = Outer(toy.unet, FlowMatchEulerDiscreteScheduler())
    cached(outer)
    outer(steps=6)
    assert torch.equal(seen[0], plain)
    assert len(outer.plugin_report().calls) == 6


def test_a_second_thread_on_a_running_pipeline_is_refused() -> None:
    tiny = tiny_pipeline("sdxl")
    tiny.pipe.enable_plugin("deepcache")
    errors: list[BaseException] = []

    def call() -> None:
        try:
            run(tiny, steps=2)
        except BaseException as error:
            errors.append(error)

    def meanwhile(*_: Any) -> dict[str, Any]:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        return {}

    expected = run(tiny, steps=2)
    assert torch.equal(run(tiny, steps=2, callback_on_step_end=meanwhile), expected)
    assert len(errors) == 2 and isinstance(errors[0], PipelineBusy)
    assert str(errors[0]) == (
        "this StableDiffusionXLPipeline is already running in another thread: its scheduler and "
        "caches serve one call at a time; wait for it, or give each thread its own pipeline "
        "(from_pipe shares weights)"
    )


def test_pipelines_in_threads_that_share_a_denoiser_equal_runs_in_sequence(toy: Toy) -> None:
    pipes = [Toy(toy.unet, FlowMatchEulerDiscreteScheduler()) for _ in range(3)]
    for pipe in pipes[:2]:
        cached(pipe)
    expected = [pipe(steps=40, at=1.0 + i) for i, pipe in enumerate(pipes)]
    # New plugins, so that FLOPs are counted while the other threads run.
    for pipe in pipes[:2]:
        cached(pipe)
    results: dict[int, Tensor] = {}
    start = threading.Barrier(len(pipes))

    def call(i: int) -> None:
        start.wait()
        results[i] = pipes[i](steps=40, at=1.0 + i)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(pipes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, value in enumerate(expected):
        assert torch.equal(results[i], value)


def test_plugins_cannot_be_switched_during_a_run() -> None:
    tiny = tiny_pipeline("sdxl")
    tiny.pipe.enable_plugin("deepcache")
    texts = []

    def switch(pipe: Any, *_: Any) -> dict[str, Any]:
        for change in (
            lambda: pipe.enable_plugin("easycache", replace=True),
            lambda: pipe.disable_plugin("deepcache"),
            pipe.disable_plugins,
        ):
            with pytest.raises(PipelineBusy) as caught:
                change()
            texts.append(str(caught.value))
        return {}

    run(tiny, steps=1, callback_on_step_end=switch)
    ending = "while StableDiffusionXLPipeline is running: do it before or after the call"
    assert texts[0] == f"cannot enable a plugin {ending}"
    assert texts[1] == texts[2] == f"cannot disable a plugin {ending}"
    assert manager_of(tiny.pipe) is not None
    assert run(tiny, steps=2).shape[0] == 1
