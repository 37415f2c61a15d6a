"""What an autotune call asks for, read and checked: target, prompts, the pipeline's own call."""

import inspect
from collections.abc import Sequence
from typing import Any

from skipstep.pipelines.compare.run import OURS
from skipstep.pipelines.tune.arms import FEWEST
from skipstep.pipelines.tune.tuning import Target
from skipstep.plugins.errors import PluginError
from skipstep.plugins.spelling import did_you_mean

__all__ = ["TARGETS", "check", "read_target", "split_prompts"]

TARGETS = ("target_speedup", "max_feature_distance", "min_psnr")


def read_target(
    target_speedup: float | None, max_feature_distance: float | None, min_psnr: float | None
) -> Target:
    """Return the one target that was given."""
    values = (target_speedup, max_feature_distance, min_psnr)
    given = [(n, v) for n, v in zip(TARGETS, values, strict=True) if v is not None]
    if len(given) != 1:
        raise PluginError(
            f"autotune: {len(given)} targets given: give one of {', '.join(TARGETS)}, "
            "for example target_speedup=2.0"
        )
    name, value = given[0]
    lowest = 1.0 if name == "target_speedup" else 0.0
    if not lowest < value < float("inf"):
        raise PluginError(f"autotune: {name}={value} is not allowed: must be above {lowest:g}")
    return Target(name, float(value))


def check(
    pipe: Any,
    own: Sequence[str],
    steps: int,
    trials: int,
    budget_minutes: float | None,
    call: dict[str, Any],
) -> None:
    """Raise PluginError for what cannot be tuned; `own` are the names of autotune's own options."""
    if steps <= FEWEST:
        raise PluginError(f"autotune: steps={steps} is not allowed: must be above {FEWEST}")
    if trials < 1:
        raise PluginError(f"autotune: trials={trials} is not allowed: must be 1 or more")
    if budget_minutes is not None and not budget_minutes > 0:
        raise PluginError(f"autotune: budget_minutes={budget_minutes} is not allowed: above 0")
    # A subclass may pass keywords on, so its bases are asked too.
    known = {
        parameter.name
        for cls in type(pipe).__mro__
        for parameter in inspect.signature(cls.__call__).parameters.values()
        if "__call__" in vars(cls) and parameter.kind is not parameter.VAR_KEYWORD
    }
    for name in call:
        if name not in known:
            raise PluginError(
                f"autotune: unknown option {name!r}{did_you_mean(name, [*own, *known])} "
                f"Options: {', '.join(own)}, and those of {type(pipe).__name__}"
            )
    for name in OURS:
        if name in call:
            raise PluginError(
                f"autotune: {name} cannot be passed on, autotune sets it itself "
                "(use prompts, held_out, steps or seed)"
            )


def split_prompts(
    pipe: Any, prompts: Sequence[Any] | None, held_out: Sequence[Any] | None
) -> tuple[list[Any], list[Any]]:
    """Return the prompts to tune on and those to judge on; none is in both."""
    if prompts is None:
        from skipstep.pipelines.reference.load import ReferencePipeline
        from skipstep.pipelines.reference.prompts import load_prompts

        if not isinstance(pipe, ReferencePipeline):
            raise PluginError(
                "autotune: no prompts given, and only the reference model has some built in: give "
                "a dozen of the sort that you use"
            )
        known: list[Any] = [each["prompt"] for each in load_prompts()]
        tuned = known[:: len(known) // 8][:8]
        return tuned, list(held_out or known[5 :: len(known) // 16][:16])
    given = [prompts] if isinstance(prompts, str) else list(prompts)
    if held_out is None:
        kept = max(1, len(given) // 3)
        given, judged = given[:-kept], given[-kept:]
    else:
        judged = list(held_out)
    if not given or not judged:
        raise PluginError(
            "autotune: at least one prompt to tune on and another to judge on are needed: give "
            "two or more, better a dozen"
        )
    both = [each for each in judged if each in given]
    if both:
        raise PluginError(
            f"autotune: {both[0]!r} is to be tuned on and held out: keep the two apart, or the "
            "judgement flatters"
        )
    return given, judged
