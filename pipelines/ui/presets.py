"""Recipes to start from, by what they are for; those that a pipeline cannot use are left out.

The thresholds were chosen on the reference model (docs/caching.md); other models change by other
amounts, which the report after each run says, with the knob to turn.
"""

from collections.abc import Mapping
from typing import Any

from skipstep.pipelines.ui.controls import recipe_words
from skipstep.plugins.few_step import FewStep
from skipstep.plugins.fingerprint import mismatches
from skipstep.plugins.lifecycle import why_not
from skipstep.plugins.options import build, parse_spec, to_dict
from skipstep.plugins.profile import profile

__all__ = ["CUSTOM", "NONE", "PLANNED", "STUDENT", "presets_of"]

NONE = "none: plain pictures"
CUSTOM = "my own"
GENERAL = {
    "careful: skips while little changes": "easycache:threshold=0.03",
    "balanced: every other step": "abcache:interval=2",
    "fast: every third step": "abcache:interval=3",
    "fastest: every fifth step": "taylorseer:interval=5",
    "UNet: every third step": "deepcache:interval=3",
}
PLANNED = "planned: half of 20 steps"
STUDENT = "student: 4 steps, no guidance to pay"


def presets_of(pipe: Any) -> dict[str, str]:
    """Return recipes by name, for this pipeline."""
    from skipstep.pipelines.reference.load import ReferencePipeline
    from skipstep.pipelines.reference.planned import planned_cache

    found = {NONE: ""}
    is_reference = isinstance(pipe, ReferencePipeline)
    if is_reference and is_of(pipe, planned_cache().made_for()):
        found[PLANNED] = recipe_words([to_dict(planned_cache())])
    known = profile(pipe)
    for name, recipe in GENERAL.items():
        if why_not(build(*parse_spec(recipe)), known) is None:
            found[name] = recipe
    if is_reference and is_of(pipe, FewStep().read().fingerprint):
        found[STUDENT] = recipe_words([to_dict(FewStep())])
    return found


def is_of(pipe: Any, fingerprint: Mapping[str, Any] | None) -> bool:
    """Say whether something that is shipped was made for the denoiser of this pipeline."""
    made_for = {key: value for key, value in (fingerprint or {}).items() if key == "denoisers"}
    return not mismatches(made_for, pipe)
