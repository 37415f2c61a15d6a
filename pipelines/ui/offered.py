"""Models by name: what is offered, what makes clips, and loading."""

from typing import Any

import diffusers

from skipstep.pipelines.generate import is_reference, load_pipeline
from skipstep.pipelines.reference.load import trained_names
from skipstep.pipelines.reference.recipe import find_recipe, load_recipe
from skipstep.pipelines.ui.watching import call_arguments

__all__ = ["CLIP_ARGUMENT", "REFERENCE", "default_models", "load_by_name", "makes_clips"]

REFERENCE = "reference"
CLIP_ARGUMENT = "num_frames"


def default_models() -> tuple[str, ...]:
    """Return the names of the reference models that are offered: the video model if it is here."""
    return (REFERENCE, *(name for name in trained_names() if makes_clips(name)))


def makes_clips(model: str) -> bool:
    """Say whether a model makes clips, by its recipe or its model_index.json; no weights are read.

    A model that cannot be asked is taken for one that makes pictures.
    """
    if model == REFERENCE:
        return False
    if is_reference(model):
        return load_recipe(find_recipe(model)).data.frames > 1
    try:
        name = diffusers.DiffusionPipeline.load_config(model).get("_class_name")
    except (OSError, ValueError):
        return False
    cls = getattr(diffusers, name, None) if isinstance(name, str) else None
    return cls is not None and CLIP_ARGUMENT in call_arguments(cls)


def load_by_name(model: str) -> Any:
    """Load the reference model, or a diffusers pipeline from a folder or the hub."""
    return load_pipeline(None if model == REFERENCE else model)
