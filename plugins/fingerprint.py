"""What a calibrated file was made for, and in what it differs from the pipeline it is used on.

A fingerprint is a flat dict of JSON values: denoiser classes with a hash of their config, scheduler
with a hash of its config, active adapters, and versions. Weights are not hashed: that would read
gigabytes; a fine-tune of the same architecture therefore passes.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import diffusers
import torch

from skipstep.files.artefact import differences
from skipstep.plugins.profile import profile

__all__ = ["MODEL_ENTRIES", "bound_call", "fingerprint", "mismatches", "of_the_call"]

MODEL_ENTRIES = ("denoisers", "scheduler", "adapters")
MUST_MATCH = (*MODEL_ENTRIES, "steps", "guidance", "size")
"""Entries whose difference is worth a word; versions are recorded for the reader."""


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
    running = fingerprint(pipe, **of_the_run)
    binding = {
        key: made_for[key]
        for key in MUST_MATCH
        if key in made_for and (key in running or key == "steps")
    }
    return differences(binding, running)


def of_the_call(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return guidance and size of a pipeline call, as far as its arguments say them.

    >>> of_the_call({"guidance_scale": 3.0, "height": None, "width": 64, "prompt": "a cat"})
    {'guidance': 3.0}
    """
    known: dict[str, Any] = {}
    if isinstance(arguments.get("guidance_scale"), int | float):
        known["guidance"] = float(arguments["guidance_scale"])
    size = [arguments.get("height"), arguments.get("width")]
    if None not in size:
        known["size"] = size
    return known


def bound_call(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call with the pipeline's own defaults beside those given."""
    parameters = inspect.signature(type(pipe).__call__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return defaults | dict(call)


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
