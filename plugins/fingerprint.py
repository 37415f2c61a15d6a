"""What a calibrated file was made for, and in what it differs from the pipeline it is used on.

A fingerprint is a flat dict of JSON values: denoiser classes with a hash of their config, scheduler
with a hash of its config, active adapters, and versions. Weights are not hashed: that would read
gigabytes; a fine-tune of the same architecture therefore passes.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import diffusers
import torch

from skipstep.caching.artefact import differences
from skipstep.plugins.profile import profile

__all__ = ["fingerprint", "mismatches"]

MUST_MATCH = ("denoisers", "scheduler", "adapters", "steps")
"""Entries whose difference is worth a word; versions and sizes are recorded for the reader."""


def fingerprint(pipe: Any, **of_the_run: Any) -> dict[str, Any]:
    """Return the fingerprint of a pipeline; `of_the_run` adds steps, size and the like."""
    found = profile(pipe)
    scheduler = getattr(pipe, "scheduler", None)
    return {
        "pipeline": found.pipeline,
        "denoisers": [f"{d.class_name} {_config_hash(d.inner)}" for d in found.denoisers],
        "scheduler": f"{type(scheduler).__name__} {_config_hash(scheduler)}",
        "adapters": sorted({name for d in found.denoisers for name in _adapters(d.inner)}),
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
        **of_the_run,
    }


def mismatches(made_for: Mapping[str, Any], pipe: Any, **of_the_run: Any) -> list[str]:
    """Say in words in what a calibrated file does not fit a pipeline, as far as the file knows."""
    binding = {key: made_for[key] for key in MUST_MATCH if key in made_for}
    return differences(binding, fingerprint(pipe, **of_the_run))


def _config_hash(component: Any) -> str:
    config = {
        key: value
        for key, value in dict(getattr(component, "config", {})).items()
        if not key.startswith("_")
    }
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _adapters(module: torch.nn.Module) -> list[str]:
    return list(getattr(module, "peft_config", {}))
