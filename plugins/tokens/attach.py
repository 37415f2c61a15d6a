"""Kind "tokens": self-attention on fewer picture tokens, on every denoiser that has them.

It stands inside the caches: what a cache skips is not reduced either. What one call of a denoiser
does is in `denoiser_call`; here is what stays from call to call.
"""

import functools
import inspect
from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor, nn

from skipstep.caching.spans.modules import kind_of
from skipstep.plugins.flops import Meter, known_counts
from skipstep.plugins.profile import Denoiser, Profile, parameters_of
from skipstep.plugins.report import Report
from skipstep.plugins.run import Run
from skipstep.plugins.tokens.base import TokenPlugin
from skipstep.plugins.tokens.denoiser_call import ReducedCall
from skipstep.plugins.tokens.importance import has_projections
from skipstep.plugins.tokens.tally import Tally

__all__ = ["EXCLUSIVE", "ORDER", "attach", "why_not"]

ORDER = 27
EXCLUSIVE = True
INSIDE = 45


def why_not(plugin: TokenPlugin, found: Profile) -> str | None:
    """Return why no denoiser of this pipeline has tokens to reduce, or None."""
    reasons = [_why_not_one(denoiser) for denoiser in found.denoisers]
    return next(iter(reasons), None) if all(reasons) else None


def _why_not_one(denoiser: Denoiser) -> str | None:
    name = f"{denoiser.name} ({denoiser.class_name})"
    if denoiser.is_parallel:
        return (
            f"{name} runs in context parallel, where each rank holds a part of the tokens: call "
            "it without enable_parallelism"
        )
    if denoiser.is_compiled or denoiser.has_compiled_blocks:
        return (
            f"{name} is compiled, which inlines the attention modules whose tokens would be "
            "reduced: do not compile it, or leave this plugin out"
        )
    if not self_attentions(denoiser):
        return f"{name} has no self-attention modules in its blocks, so it has no tokens to reduce"
    parameters = list(inspect.signature(type(denoiser.inner).forward).parameters.values())[1:]
    first = parameters[0] if parameters else None
    if first is not None and "list" in str(first.annotation).lower():
        return (
            f"{name} takes a list of pictures and mixes picture and text in one sequence, so its "
            "picture tokens cannot be told apart, and text is never merged"
        )
    return None


def self_attentions(denoiser: Denoiser) -> dict[str, nn.Module]:
    """Return the self-attention modules of the denoiser's blocks by path, in their order."""
    names = {id(module): path for path, module in denoiser.inner.named_modules()}
    roots = [block for stack in denoiser.stacks for block in stack] or [denoiser.inner]
    found = {}
    for root in roots:
        for parent in root.modules():
            for name, child in parent.named_children():
                path = names[id(child)]
                is_temporal = "temporal" in path or "motion_modules" in path
                is_attention = kind_of(name, child) == "attention" and has_projections(child)
                if is_attention and not is_temporal:
                    found[path] = child
    return found


def attach(plugin: TokenPlugin, site: Any) -> None:
    """Stand in for the self-attention of every denoiser; the report says why not of others."""
    for denoiser in site.profile.denoisers:
        reason = _why_not_one(denoiser)
        if reason is None:
            DenoiserTokens(plugin, denoiser, site)
        else:
            note = f"{denoiser.name} keeps all its tokens: {reason}"
            site.on_report(lambda run, report, note=note: report.notes.append(note))


class DenoiserTokens:
    """One reduction on one denoiser: what is known of its modules stays here, what a run remembers
    stays on the Run.
    """

    def __init__(self, plugin: TokenPlugin, denoiser: Denoiser, site: Any) -> None:
        self.plugin, self.denoiser, self.site = plugin, denoiser, site
        self.parameters = parameters_of(denoiser.inner)
        self.modules = self_attentions(denoiser)
        self.names = {path: parameters_of(module) for path, module in self.modules.items()}
        self.depths = {
            path: i / max(1, len(self.modules) - 1) for i, path in enumerate(self.modules)
        }
        self.is_proven: dict[Hashable, bool] = {}
        self.text_first: bool | None = None
        self.seen: set[Hashable] = set()
        self.full: dict[Hashable, float] = {}
        self.whole = Meter(is_on=True, known={})
        # What one module costs on so many tokens is the same under every reduction.
        self.meter = Meter(is_on=True, known=known_counts(denoiser.inner, "tokens"))
        site.wrap(denoiser.module, self.root, ORDER)
        for path, module in self.modules.items():
            site.wrap(module, functools.partial(self.inside, path, module), INSIDE)
        site.on_report(self.report)

    def root(self, call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Reduce the tokens of one call of the denoiser."""
        run = self.site.run()
        if run is None:
            return call_next(*args, **kwargs)
        named = dict(zip(self.parameters, args, strict=False)) | kwargs
        with run.inside(self.denoiser.module, named):
            step, _ = run.enter(self.denoiser.module, named)
            call = ReducedCall(self, self.tally(run), self._main_input(named), step)
            run.state[self, "call"] = call
            try:
                return call.serve(call_next, args, kwargs)
            finally:
                del run.state[self, "call"]

    def inside(
        self,
        path: str,
        module: nn.Module,
        call_next: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Serve the call of one attention module."""
        run = self.site.run()
        call = run.state.get((self, "call")) if run is not None else None
        if call is None or module.training:
            return call_next(*args, **kwargs)
        return call.attend(path, module, call_next, args, kwargs)

    def _main_input(self, named: dict[str, Any]) -> Tensor | None:
        """Return the noisy picture: the first batch among the denoiser's parameters."""
        values = (named.get(name) for name in self.parameters)
        return next((v for v in values if isinstance(v, Tensor) and v.ndim > 2), None)

    def tally(self, run: Run) -> Tally:
        """Return what is counted in this run."""
        found: Tally = run.state.setdefault((self, "tally"), Tally(len(self.modules)))
        return found

    def report(self, run: Run, report: Report) -> None:
        """Say how many tokens were kept and what that saved."""
        tally = self.tally(run)
        notes, warnings = tally.words(self.plugin, self.denoiser.name)
        report.notes += notes
        report.warnings += warnings
        if not report.calls and tally.flops_full:
            report.flops_done = (report.flops_done or 0) + tally.flops_done
            report.flops_full = (report.flops_full or 0) + tally.flops_full
