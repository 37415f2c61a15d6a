"""Kind "attention": how another way to attend meets a pipeline's denoisers.

It stands inside the caches: what a cache skips is not attended to at all. What one denoiser call
does is in `denoiser_call`; here is what stays from call to call.
"""

import functools
from collections.abc import Callable
from typing import Any

from skipstep.plugins.attention.denoiser_call import AttentionCall
from skipstep.plugins.attention.learn import text_comes_first
from skipstep.plugins.attention.methods.base import AttentionPlugin, SparseAttention, WayToAttend
from skipstep.plugins.attention.reach import listening, points_in, standing_in
from skipstep.plugins.attention.tally import Tally
from skipstep.plugins.profile import Denoiser, Profile, parameters_of
from skipstep.plugins.report import Report
from skipstep.plugins.run import Run

__all__ = ["EXCLUSIVE", "ORDER", "attach", "why_not"]

ORDER = 50
EXCLUSIVE = True
OUTERMOST = 0
LAYER = 45


def why_not(plugin: AttentionPlugin, found: Profile) -> str | None:
    """Return why no denoiser of this pipeline can attend in this way, or None."""
    method = plugin.resolve()
    reasons = [_why_not_one(method, denoiser) for denoiser in found.denoisers]
    return next(iter(reasons), None) if all(reasons) else None


def _why_not_one(method: WayToAttend, denoiser: Denoiser) -> str | None:
    name = f"{denoiser.name} ({denoiser.class_name})"
    if denoiser.is_parallel:
        return (
            f"{name} runs in context parallel, where each rank holds a part of the tokens: call "
            "it without enable_parallelism"
        )
    if denoiser.is_compiled:
        return (
            f"{name} is compiled as a whole, which hides where its layers begin: compile with "
            f"pipe.{denoiser.name}.compile_repeated_blocks(fullgraph=True) instead"
        )
    if isinstance(method, SparseAttention) and not _has_frames(method, denoiser):
        return (
            f"{name} makes images, and {method.name} attention is about frames: use it for video, "
            "or use 'sparge' or 'xattention'"
        )
    points, unknown = points_in(denoiser.inner)
    if points:
        return None
    if unknown:
        return (
            f"{name} has attention processors that call attention in their own way "
            f"({', '.join(unknown)}): set diffusers' default ones, "
            f"pipe.{denoiser.name}.set_default_attn_processor()"
        )
    return f"{name} has no self-attention modules with a processor, so no call can be caught"


def _has_frames(method: SparseAttention, denoiser: Denoiser) -> bool:
    """Say whether a method that is about frames finds some here."""
    is_video = method.grid[0] > 1 if method.grid else denoiser.is_video
    return is_video or not method.needs_frames


def attach(plugin: AttentionPlugin, site: Any) -> None:
    """Stand in for the attention of every denoiser it can serve; the report says why not others."""
    method = plugin.resolve()
    for denoiser in site.profile.denoisers:
        reason = _why_not_one(method, denoiser)
        if reason is None:
            DenoiserAttention(plugin.name, method, denoiser, site)
        else:
            note = f"{denoiser.name} attends as before: {reason}"
            site.on_report(lambda run, report, note=note: report.notes.append(note))


class DenoiserAttention:
    """One way to attend on one denoiser: what is known of it; what a run remembers stays on it."""

    def __init__(self, name: str, method: WayToAttend, denoiser: Denoiser, site: Any) -> None:
        self.name, self.method, self.denoiser, self.site = name, method, denoiser, site
        self.parameters = parameters_of(denoiser.inner)
        self.config = dict(getattr(denoiser.inner, "config", None) or {})
        self.points, self.unknown = points_in(denoiser.inner)
        self.has_levels = denoiser.kind == "unet"
        self.layers = layers_of(denoiser, [point.path for point in self.points])
        self.text_first: bool | None = None
        self.has_asked = self.has_levels
        site.wrap(denoiser.module, self.root, OUTERMOST)
        for number, layer in enumerate(self.layers):
            site.wrap(layer, functools.partial(self.inside, number, layer), LAYER)
        site.on_report(self.report)

    def root(self, call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Answer the attention calls of one call of the denoiser."""
        run = self.site.run()
        if run is None:
            return call_next(*args, **kwargs)
        given = dict(zip(self.parameters, args, strict=False)) | kwargs
        named = {name: given[name] for name in (*self.parameters, *given) if name in given}
        module = self.denoiser.module
        with run.inside(module, named):
            step, branch = run.enter(module, named)
            call = AttentionCall(self, run, step, branch, named)
            with standing_in(self.points), listening(call):
                return call_next(*args, **kwargs)

    def inside(
        self, number: int, layer: Any, call_next: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Tell the calls of one layer from those of another."""
        call = AttentionCall.now(self)
        if call is None:
            return call_next(*args, **kwargs)
        if not self.has_asked:
            self.has_asked = True
            self.text_first = text_comes_first(layer, args, kwargs)
        with call.in_layer(number, [*args, *kwargs.values()]):
            return call_next(*args, **kwargs)

    def tally(self, run: Run) -> Tally:
        """Return what is counted in this run."""
        found: Tally = run.state.setdefault((self, "tally"), Tally(self.name, self.denoiser.name))
        return found

    def report(self, run: Run, report: Report) -> None:
        """Add what was attended to, layer by layer, and say why it was dense where it was."""
        tally = self.tally(run)
        report.attention += tally.lines()
        report.warnings += tally.warnings(self.method, len(self.layers), report.steps)
        if self.unknown:
            report.notes.append(
                f"{', '.join(self.unknown)} on {self.denoiser.name} calls attention in its own "
                "way and stays as it is"
            )


def layers_of(denoiser: Denoiser, paths: list[str]) -> list[Any]:
    """Return the modules whose calls tell layers apart: the blocks of a DiT that attend, or the
    parents of a UNet's attention modules, in the order of the model.
    """
    names = {id(module): path for path, module in denoiser.inner.named_modules()}
    blocks = [block for stack in denoiser.stacks for block in stack]
    found = [
        block for block in blocks if any(path.startswith(f"{names[id(block)]}.") for path in paths)
    ]
    if found:
        return found
    parents = dict.fromkeys(path.rpartition(".")[0] for path in paths)
    return [denoiser.inner.get_submodule(parent) for parent in parents if parent]
