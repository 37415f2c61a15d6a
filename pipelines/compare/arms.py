"""The arms of a comparison: read from what the user wrote, matched by fewer steps of equal cost.

Fewer steps at equal cost: an arm that executes the fraction c of the block computations of s steps
is matched by an uncached run of s' steps, s' = s c rounded to the nearest integer. It is the first
thing anyone would try instead of a cache, so a cache that does not beat it has no use.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from skipstep.plugins import options, recipe
from skipstep.plugins.errors import PluginError

__all__ = ["BASELINE", "Arm", "equal_cost_steps", "fewer_steps_arm", "read_arms", "spec"]

BASELINE = "uncached"
MIN_STEPS = 2
BARE = re.compile(r"[A-Za-z][\w./+-]*")


@dataclass(frozen=True)
class Arm:
    """One way to run the pipeline: a name, the plugins it switches on, the number of steps."""

    name: str
    kind: Literal["baseline", "plugins", "fewer steps"]
    steps: int
    plugins: tuple[Any, ...] = ()


def spec(plugin: Any) -> str:
    """Return the text that makes `plugin` again: its name and the options that were changed."""
    described = options.to_dict(plugin)
    changed = described.get("options") or {}
    if not changed:
        return str(described["name"])
    # JSON is YAML that fits into a line, which is how parse_spec reads a value.
    values = (f"{key}={written(value)}" for key, value in changed.items())
    return f"{described['name']}:{','.join(values)}"


def written(value: Any) -> str:
    """Write an option's value as `parse_spec` reads it; plain text stays bare.

    >>> written(None), written(True), written("output"), written("8"), written({"order": 2})
    ('null', 'true', 'output', '"8"', '{"order": 2}')
    """
    if isinstance(value, str) and BARE.fullmatch(value) and yaml.safe_load(value) == value:
        return value
    # An escaped quote would end the text for whoever splits at commas outside of quotes.
    text = json.dumps(value, ensure_ascii=False)
    return re.sub(r"\\.", lambda pair: r"\u0022" if pair[0] == r"\"" else pair[0], text)


def read_arms(arms: Any, steps: int) -> list[Arm]:
    """Return the arms described by `arms`, without the baseline.

    Args:
        arms: a recipe, a sequence of recipes, or a mapping from the name to show to a recipe. A
            recipe is a text ("easycache:threshold=0.08", several joined by " + "), the path of a
            recipe file (.yaml), an options object, a {"name": ..., "options": ...} mapping, or a
            list of these that are switched on together.
    """
    if isinstance(arms, Mapping) and "name" not in arms:
        read = [Arm(str(name), "plugins", steps, read_recipe(arm)) for name, arm in arms.items()]
    else:
        listed = list(arms) if isinstance(arms, Sequence) and not isinstance(arms, str) else [arms]
        read = []
        for arm in listed:
            plugins = read_recipe(arm)
            # What was typed is what is shown; a file or an object is shown by what it holds.
            is_typed = isinstance(arm, str) and not is_file(arm)
            name = arm.strip() if is_typed else " + ".join(spec(plugin) for plugin in plugins)
            read.append(Arm(name, "plugins", steps, plugins))
    if not read:
        raise PluginError(
            "compare: no arms given: name at least one recipe, for example "
            '"easycache:threshold=0.08"'
        )
    names = [BASELINE, *(arm.name for arm in read)]
    for name in names:
        if names.count(name) > 1:
            raise PluginError(
                f"compare: the arm {name!r} is there twice: give each arm once, or name them "
                'with a mapping {"name": recipe} (the uncached arm is always run)'
            )
    return read


def read_recipe(given: Any) -> tuple[Any, ...]:
    """Return the plugins of one arm."""
    if is_file(given):
        return tuple(recipe.load(Path(given)))
    if isinstance(given, str):
        texts = given.split(" + ")
        return tuple(options.build(*options.parse_spec(text.strip())) for text in texts)
    if isinstance(given, Mapping):
        return (options.build(given),)
    if isinstance(given, Sequence):
        return tuple(plugin for part in given for plugin in read_recipe(part))
    return (options.build(given),)


def is_file(given: Any) -> bool:
    """Say whether an arm is given as the path of a recipe file."""
    return isinstance(given, Path) or (isinstance(given, str) and given.endswith((".yaml", ".yml")))


def equal_cost_steps(steps: int, fraction: float) -> int | None:
    """Return how many uncached steps cost `fraction` of `steps`, or None if that saves no step.

    >>> equal_cost_steps(20, 0.52), equal_cost_steps(20, 0.99)
    (10, None)
    """
    fewer = max(MIN_STEPS, round(steps * fraction))
    return fewer if fewer < steps else None


def fewer_steps_arm(steps: int) -> Arm:
    """Return the uncached arm of `steps` steps."""
    return Arm(f"{steps} steps, uncached", "fewer steps", steps)
