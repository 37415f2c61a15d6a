"""Load a reference model: a small pipeline trained here, to measure plugins on.

Everything is a stock diffusers or transformers class. Weights and configurations are read from
files, only safetensors, JSON and YAML, never the network. The default model ships inside the
package; its siblings lie in `zoo/` of the repository, from which the wheel `skipstep-zoo` is built.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, AutoencoderTiny
from safetensors.torch import load_file
from torch import Tensor

from skipstep.pipelines.reference.denoiser import ReferencePipeline
from skipstep.pipelines.reference.families import FAMILIES
from skipstep.pipelines.reference.recipe import (
    RECIPES,
    Recipe,
    find_recipe,
    load_recipe,
    recipe_names,
)
from skipstep.pipelines.reference.text import load_text_encoder, load_tokenizer
from skipstep.plugins.errors import PluginError

__all__ = [
    "WEIGHTS",
    "ReferencePipeline",
    "find_weights",
    "load_model",
    "load_reference",
    "new_reference",
    "trained_names",
]

WEIGHTS = Path(__file__).with_name("weights")
ZOO = Path(__file__).parents[2] / "zoo" / "skipstep_zoo"


AUTOENCODERS = {kind.__name__: kind for kind in (AutoencoderTiny, AutoencoderKLWan)}


def load_model(name: str, dtype: torch.dtype) -> Any:
    """Build an autoencoder from `{name}.json` and fill it from its safetensors file."""
    weights = find_file(f"{name}.safetensors")
    if weights is None:
        raise PluginError(f"there is no autoencoder {name!r} here: train it first")
    config = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    state = load_file(weights)
    model = AUTOENCODERS[config.pop("_class_name", "AutoencoderTiny")].from_config(config)
    model.load_state_dict({key: value.float() for key, value in state.items()})
    # diffusers' own `to` warns of modules kept in float32 even where a model names none.
    return torch.nn.Module.to(model, dtype).eval()


def new_reference(
    recipe: Recipe, state: dict[str, Tensor], dtype: torch.dtype = torch.float32
) -> Any:
    """Return the pipeline of a recipe around a denoiser with the weights `state`."""
    family = FAMILIES[recipe.family]
    denoiser = family.new(recipe.denoiser)
    denoiser.load_state_dict({key: value.float() for key, value in state.items()})
    parts = {
        "tokenizer": load_tokenizer(),
        "text_encoder": load_text_encoder(dtype),
        "vae": load_model(recipe.data.autoencoder, dtype),
    }
    return family.pipeline(parts, torch.nn.Module.to(denoiser, dtype).eval(), recipe.data)


def weight_folders() -> list[Path]:
    """Return where weights may lie: the package, a checkout's zoo, the installed zoo."""
    installed = importlib.util.find_spec("skipstep_zoo")
    places = [WEIGHTS, ZOO]
    if installed is not None and installed.origin is not None:
        places.append(Path(installed.origin).parent)
    return [place for place in places if place.is_dir()]


def find_file(name: str) -> Path | None:
    """Return the first file of that name in the weight folders."""
    return next((place / name for place in weight_folders() if (place / name).is_file()), None)


def find_weights(recipe: Recipe) -> Path | None:
    """Return the safetensors file of a recipe's trained denoiser, or None if there is none here."""
    return find_file(f"{recipe.weights or recipe.title}.safetensors")


def trained_names() -> list[str]:
    """Return the names that `load_reference` can load here."""
    recipes = {name: load_recipe(RECIPES / f"{name}.yaml") for name in recipe_names()}
    return [name for name, recipe in recipes.items() if find_weights(recipe) is not None]


def load_reference(name: str = "picture", *, dtype: torch.dtype = torch.float32) -> Any:
    """Load a reference model on the CPU, in seconds and without a network.

    "picture" draws 180 emoji-like things in the styles "flat", "3d" and "noto" on white or on one
    of 11 named colours, at 128 pixels: `load_reference()("a pizza, 3d style, on a blue
    background").images[0]`. These are test objects for acceleration methods, not general image
    generators; `docs/reference-models.md` has them all, with their measured limits.

    Raises PluginError for an unknown name, and for one whose weights are not here.
    """
    if name not in recipe_names():
        raise PluginError(
            f"there is no reference model {name!r}: choose one of {', '.join(trained_names())}"
        )
    recipe = load_recipe(find_recipe(name))
    weights = find_weights(recipe)
    if weights is None:
        raise PluginError(missing(recipe))
    return new_reference(recipe, load_file(weights), dtype)


def missing(recipe: Recipe) -> str:
    """Say why a recipe's weights are not here and what to do."""
    here = f"here are {', '.join(trained_names())}"
    train = f"python -m skipstep.pipelines.reference.train {recipe.name}"
    if len(weight_folders()) > 1:
        return (
            f"reference model {recipe.name!r} ({recipe.title}) has a recipe but no trained weights "
            f"yet: {here}. To train it: {train}"
        )
    return (
        f"reference model {recipe.name!r} ({recipe.title}) is not part of skipstep's own wheel: "
        f"{here}. Its siblings come with `pip install ./zoo` from a checkout of the repository "
        "(the wheel skipstep-zoo), or with an editable install of the checkout"
    )
