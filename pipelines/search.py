"""Find a better picture: `pipe.search(prompt, reward=...)`.

    def reward(pictures, prompt): return [score(picture, prompt) for picture in pictures]
    found = pipe.search("a red fox in snow", reward=reward, method="resample", population=8)
    found.pictures[0].save("best.png")

`method` is "best" (make many), "resample" (give up on bad ones early) or "evolve" (mutate good
ones), or an options object of samplers/search. What lies between noise and picture is reached by
running the pipeline with a scheduler that begins and ends where a search wants (solvers/drive.py);
"best" alone runs the pipeline as it is, so it works beside every plugin, students included.
"""

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from skipstep.pipelines.compare.run import device_of, prompt_parameter, silent
from skipstep.plugins.errors import BadOption, Incompatible, PluginError
from skipstep.plugins.lifecycle import manager_of
from skipstep.samplers.search.best_of import BestOf
from skipstep.samplers.search.evosearch import EvoSearch
from skipstep.samplers.search.particles import Particles
from skipstep.samplers.search.sampler import Found, Method, Visit
from skipstep.samplers.solvers.conversions import to_kernel
from skipstep.samplers.solvers.drive import DrivingScheduler
from skipstep.samplers.solvers.presets import PresetName
from skipstep.samplers.solvers.scheduler import ExponentialAdamsScheduler
from skipstep.samplers.solvers.solver import path_config

__all__ = ["METHODS", "PipelineSampler", "search"]

METHODS: dict[str, type[Any]] = {"best": BestOf, "evolve": EvoSearch, "resample": Particles}
OURS = ("generator", "latents", "num_inference_steps", "output_type")
PictureReward = Callable[[list[Any], Any], Sequence[float] | Tensor]


def search(
    pipe: Any,
    prompt: Any,
    *,
    reward: PictureReward,
    method: str | Method = "resample",
    steps: int = 20,
    preset: PresetName = "dpm++2m",
    batch: int = 8,
    seed: int = 0,
    call: dict[str, Any] | None = None,
    **options: Any,
) -> Found:
    """Make several pictures of one prompt and return them, the best first.

    Args:
        reward: (pictures, prompt) -> one number a picture, more is better; "resample" asks it about
            unfinished pictures too.
        method: "best", "resample", "evolve", or an options object; `options` are its options.
        steps: evaluations of a picture that is made in one go.
        preset: solver of the walks (samplers.md); "best" walks with the pipeline's own.
        batch: pictures made together.
        call: goes to the pipeline: guidance_scale, height, ...

    Raises BadOption for an unknown method or option, Incompatible where the pipeline takes no
    `latents`, or where a plugin brings a scheduler of its own and the method needs ours.
    """
    chosen = method_of(method, options)
    sampler = PipelineSampler(
        pipe, prompt, steps, preset=preset, batch=batch, whole=isinstance(chosen, BestOf), call=call
    )

    def judge(pictures: list[Any]) -> Tensor:
        scores = torch.as_tensor(reward(pictures, prompt), dtype=torch.float64).cpu()
        if scores.shape != (len(pictures),):
            raise PluginError(
                f"search: reward returned {tuple(scores.shape)} for {len(pictures)} pictures: "
                "return one number a picture"
            )
        if not scores.isfinite().all():
            raise PluginError("search: reward returned NaN or infinity: return finite numbers")
        return scores

    with silent(pipe):
        return chosen.run(sampler, judge, torch.Generator().manual_seed(seed))


def method_of(method: str | Method, options: dict[str, Any]) -> Method:
    """Return a search from its name and options; raises BadOption."""
    if not isinstance(method, str):
        if options:
            raise BadOption(f"search: {', '.join(options)} beside an options object: put it inside")
        return method
    if method not in METHODS:
        raise BadOption(f"search: unknown method {method!r}. Methods: {', '.join(METHODS)}")
    try:
        made: Method = METHODS[method](**options)
    except ValueError as error:
        raise BadOption(f"search: method {method!r}: {error}") from None
    return made


class PipelineSampler:
    """A pipeline and a prompt as a search's sampler; rewards see what the pipeline returns.

    With `whole` it walks from noise to picture only, with the pipeline's own scheduler.
    """

    def __init__(
        self,
        pipe: Any,
        prompt: Any,
        steps: int,
        *,
        preset: PresetName = "dpm++2m",
        batch: int = 8,
        whole: bool = False,
        call: dict[str, Any] | None = None,
    ) -> None:
        self.pipe, self.prompt, self.steps, self.batch = pipe, prompt, steps, batch
        self.whole, self.call, self.evaluations = whole, dict(call or {}), 0
        for name in OURS:
            if name in self.call:
                raise BadOption(f"search: {name} cannot be passed on: use steps, seed or batch")
        if "latents" not in inspect.signature(type(pipe).__call__).parameters:
            raise Incompatible(
                f"search: {type(pipe).__name__} takes no latents, so nobody can choose its noise"
            )
        manager = manager_of(pipe)
        rivals = [h.plugin for h in manager.handles.values()] if manager else []
        rival = next((each.name for each in rivals if each.kind == "sampler"), None)
        if rival is not None and not whole:
            raise Incompatible(
                f"search: {rival!r} brings a scheduler of its own, and this method drives the "
                f"scheduler itself: use method='best', or disable_plugin({rival!r})"
            )
        config = path_config(pipe.scheduler)
        self.solver: ExponentialAdamsScheduler = ExponentialAdamsScheduler(**config, preset=preset)
        self.solver.set_timesteps(steps)
        self.shape: tuple[int, ...] | None = None

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Return normal noise in the form that the pipeline's loop has it (packed, if it packs)."""
        if self.shape is None:
            self.shape = self._look()
        return torch.randn(count, *self.shape, generator=generator)

    def walk(self, x: Tensor, begin: int, end: int, keep: Collection[int] = ()) -> Visit:
        """Run the pipeline from node `begin` to node `end` and let it decode what it sees there."""
        parts = [self._walk(part, begin, end, keep) for part in torch.split(x, self.batch)]
        return Visit(
            torch.cat([part.state for part in parts]),
            [picture for part in parts for picture in part.pictures],
            {n: torch.cat([part.states[n] for part in parts]) for n in parts[0].states},
        )

    def renoise(self, x: Tensor, node: int, to: int, generator: torch.Generator) -> Tensor:
        """Bring states back to a noisier node."""
        path = self.solver.path
        places = [*self.solver.nodes, 0.0]
        (a, b), (a_to, b_to) = ((path.alpha(s), path.sigma(s)) for s in (places[node], places[to]))
        kept = a_to / a
        added = max(b_to**2 - (kept * b) ** 2, 0.0) ** 0.5
        again: Tensor = kept * x + added * torch.randn(x.shape, generator=generator)
        return again

    def _walk(self, x: Tensor, begin: int, end: int, keep: Collection[int]) -> Visit:
        self.evaluations += len(x) * (end - begin)
        if self.whole:
            made = self._run(x, self.steps)
            return Visit(x, pictures_of(made))
        solver, states = self.solver, {}
        solver.set_timesteps(self.steps)
        solver.set_begin_index(begin)
        last = x

        def advance(i: int, x: Tensor, output: Tensor) -> Tensor:
            nonlocal last
            s, now = solver.nodes[begin + i], solver.timesteps[begin + i]
            p, q = to_kernel(
                "x0", solver.path, s, solver.config.prediction_type, solver.config.sigma_data
            )
            last = solver.step(output, now, x).prev_sample
            if begin + i + 1 in keep:
                states[begin + i + 1] = last.cpu()
            is_unfinished = begin + i + 1 == end < self.steps
            # What the pipeline decodes at its end is the picture as the network sees it.
            return p * x + q * output if is_unfinished else last

        level = solver.path.most if solver.path.kind == "edm" and begin == 0 else 1.0
        made = self._driven(x * level, solver.timesteps[begin:end].tolist(), advance)
        return Visit(last.cpu(), pictures_of(made), states)

    def _driven(self, x: Tensor | None, times: list[float], advance: Any, **more: Any) -> Any:
        config = path_config(self.pipe.scheduler)
        driver = DrivingScheduler(ExponentialAdamsScheduler(**config), times, advance)
        vars(driver)["init_noise_sigma"] = 1.0
        own = self.pipe.scheduler
        vars(self.pipe)["scheduler"] = driver
        try:
            return self._run(x, len(times), **more)
        finally:
            vars(self.pipe)["scheduler"] = own

    def _run(self, x: Tensor | None, steps: int, **more: Any) -> Any:
        count = 1 if x is None else len(x)
        arguments = {prompt_parameter(self.pipe): [self.prompt] * count, **self.call, **more}
        if x is not None:
            denoiser = getattr(self.pipe, "transformer", None) or getattr(self.pipe, "unet", None)
            arguments["latents"] = x.to(device_of(self.pipe), getattr(denoiser, "dtype", x.dtype))
        return self.pipe(**arguments, num_inference_steps=steps)

    def _look(self) -> tuple[int, ...]:
        """Return the shape of one sample, from a run that stops after its first evaluation."""
        found: list[tuple[int, ...]] = []

        def advance(i: int, x: Tensor, output: Tensor) -> Tensor:
            found.append(tuple(x.shape[1:]))
            raise _Enough

        try:
            with self.pipe.plugins_off():
                self._driven(None, self.solver.timesteps[:2].tolist(), advance)
        except _Enough:
            self.evaluations += 1
        if not found:
            raise PluginError(
                f"search: {type(self.pipe).__name__} never asked its scheduler to step"
            )
        return found[0]


class _Enough(Exception):
    """Ends a run once its sample was seen."""


def pictures_of(made: Any) -> list[Any]:
    """Return the pictures (or clips) of a pipeline's output."""
    found = getattr(made, "images", None)
    return list(made[0] if found is None else found)
