"""The recipes by name, and where the class of each lives; nothing is imported before it is asked
for.
"""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from skipstep.samplers.distill.protocol import Distiller

__all__ = ["RECIPES", "load_recipe"]

RECIPES = {
    "backward": "backward:Backward",
    "caf": "caf:CAF",
    "consistency": "consistency:Consistency",
    "guidance": "guidance:Guidance",
    "imm": "imm:IMM",
    "meanflow": "flowmap:MeanFlow",
    "rayflow": "rayflow:RayFlow",
    "reflow": "reflow:Reflow",
    "residual": "residual:Residual",
    "segmented": "consistency:Segmented",
    "self_forcing": "self_forcing:SelfForcing",
    "shortcut": "flowmap:Shortcut",
    "speedup": "speedup:SpeedUpNet",
    "tdm": "dmd:TDM",
    "trajectory": "trajectory:Trajectory",
    "unroll": "unroll:Unroll",
}


def recipe_class(name: str) -> type[Distiller]:
    """Return the class of a recipe; raises ValueError that suggests a name."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name.lower(), RECIPES, 1)
        hint = f", did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown recipe {name!r}{hint} Recipes: {', '.join(RECIPES)}")
    module, _, attribute = RECIPES[name].partition(":")
    found = importlib.import_module(f"skipstep.samplers.distill.recipes.{module}")
    return cast(type[Distiller], getattr(found, attribute))


def load_recipe(name: str, options: Mapping[str, Any] | None = None) -> Distiller:
    """Make a recipe from its name and options; raises ValueError with the recipe and the option."""
    cls = recipe_class(name)
    try:
        return TypeAdapter(cls).validate_python(dict(options or {}))
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(str(part) for part in each['loc']) or 'options'}: {each['msg']}"
            for each in error.errors(include_url=False)[:3]
        )
        raise ValueError(f"recipe {name}: {told}") from None
