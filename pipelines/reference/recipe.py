"""A recipe: all that decides a reference model, in one YAML file (`recipes/*.yaml`).

The data and the trainer know nothing that is not in it, so a model is the same whoever trains it:
two recipes with equal `data` share one prepared file, and a run goes on only with the recipe that
began it.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from skipstep.pipelines.reference.captions import ANIMATED, STYLES, TAUGHT, parse_names

__all__ = [
    "RECIPES",
    "Data",
    "Recipe",
    "Training",
    "digest",
    "find_recipe",
    "load_recipe",
    "recipe_names",
]

RECIPES = Path(__file__).with_name("recipes")
STRICT = ConfigDict(extra="forbid")

Family = Literal["pixart", "unet", "flux", "wan"]
Seconds = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=0.1)]


@dataclass(frozen=True, config=STRICT)
class Data:
    """Which pictures are taught, and how large."""

    size: Annotated[int, Field(ge=16, le=256, multiple_of=8, description="pixels a side")] = 128
    frames: Annotated[int, Field(ge=1, le=49, description="1 is a picture, more a clip")] = 1
    styles: Annotated[tuple[str, ...], Field(min_length=1)] = STYLES
    names: Annotated[str, Field(description="separated by semicolons; empty is all there are")] = ""
    text: Annotated[
        Literal["masked", "unmasked", "zeroed"],
        Field(description="what the pipeline's text encoder makes of padding"),
    ] = "masked"
    autoencoder: str = "autoencoder-v1"

    def __post_init__(self) -> None:
        if unknown := sorted(self.taught - TAUGHT):
            raise ValueError(f"names has {unknown}, which are not among the {len(TAUGHT)} taught")
        allowed = STYLES if self.frames == 1 else (ANIMATED,)
        if unknown := sorted(set(self.styles) - set(allowed)):
            raise ValueError(
                f"styles has {unknown}, allowed with {self.frames} frames: {', '.join(allowed)}"
            )

    @property
    def taught(self) -> frozenset[str]:
        """The names of the training set; clips that are not filtered have more than these."""
        return parse_names(self.names) if self.names else TAUGHT


@dataclass(frozen=True, config=STRICT)
class Training:
    """How long and how fast."""

    minutes: Annotated[float, Field(gt=0, description="wall time in all, over every slice")]
    batch: Annotated[int, Field(ge=1)] = 64
    matrix_rate: Annotated[Rate, Field(description="peak rate of the blocks' matrices, Muon")] = (
        2e-3
    )
    other_rate: Annotated[Rate, Field(description="peak rate of everything else, AdamW")] = 1e-3
    warmup_steps: Annotated[int, Field(ge=1)] = 60
    average: Annotated[float, Field(gt=0, lt=1, description="limit of the average's decay")] = 0.997
    begin_with: Annotated[
        str, Field(description="released weights, file without suffix; empty is at random")
    ] = ""
    compile_blocks: Annotated[
        bool, Field(description="fuse each block's small operations; takes a minute to begin")
    ] = False
    checkpoint_seconds: Seconds = 300.0
    sheet_seconds: Seconds = 900.0


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """One reference model: what it is, what it is taught, how it is trained."""

    name: Annotated[str, Field(pattern="^[a-z0-9]+$")]
    version: Annotated[int, Field(ge=1, description="git keeps every file: count up to retrain")]
    family: Family
    denoiser: dict[str, Any]
    training: Training
    data: Data = Field(default_factory=Data)
    weights: Annotated[str, Field(description="file without suffix; empty is the title")] = ""

    @property
    def title(self) -> str:
        """Name and version, under which its run and, unless told otherwise, its weights lie."""
        return f"{self.name}-v{self.version}"


def digest(value: Any) -> str:
    """Return 12 hexadecimal digits that stand for `value`, a dataclass or plain data."""
    plain = asdict(value) if hasattr(value, "__dataclass_fields__") else value
    text = json.dumps(plain, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def recipe_names() -> list[str]:
    """Return the names of `recipes/`."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """Return the file of a name of `recipes/`, or `name` itself if it is a file.

    Raises ValueError that lists the recipes there are.
    """
    inside = RECIPES / f"{name}.yaml"
    if inside.is_file():
        return inside
    if not Path(name).is_file():
        raise ValueError(
            f"there is no recipe {name!r}: give a YAML file or one of {', '.join(recipe_names())}"
        )
    return Path(name)


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe; raises ValueError that names the field that is wrong."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        return TypeAdapter(Recipe).validate_python(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise ValueError(f"{path.name}: {place}: {problem['msg']}") from None
