"""Recipes: plugins and their options as a small YAML file that people can read, edit and share.

    version: 1
    for: FluxPipeline
    plugins:
    - name: easycache
      options:
        threshold: 0.08

A recipe comes from someone else as often as not. It is data only: no tags, no anchors, no unknown
keys, no key twice, at most one megabyte.
"""

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from skipstep.plugins.errors import PluginError
from skipstep.plugins.options import build, show, to_dict
from skipstep.plugins.plugin import Plugin
from skipstep.plugins.spelling import did_you_mean

__all__ = ["Recipe", "load", "read", "read_yaml", "save", "text"]

VERSION = 1
LARGEST_BYTES = 1_000_000
KEYS = ("version", "plugins", "for")


@dataclass(frozen=True)
class Recipe:
    """Hold the plugins of a recipe and the pipeline class it was made for, if it says one."""

    plugins: list[Plugin]
    for_pipeline: str | None


class StrictLoader(yaml.SafeLoader):
    """Read plain data, and refuse what a recipe never needs: aliases and a key given twice."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse an alias, with which a short file can stand for an endless one."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("a recipe has no anchors and no aliases")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that comes twice; YAML would silently take the last."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: key {show(key.value)} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def save(
    path: str | os.PathLike[str], plugins: Sequence[Plugin], for_pipeline: str | None = None
) -> None:
    """Write plugins to a recipe, replacing the file; only options that are not the default.

    Args:
        path: the YAML file.
        plugins: options objects.
        for_pipeline: name of the pipeline class that they were chosen for.

    Raises:
        PluginError: if one of the objects is not a plugin.
    """
    Path(path).write_text(text(plugins, for_pipeline), encoding="utf-8")


def text(plugins: Sequence[Plugin], for_pipeline: str | None = None) -> str:
    """Return what `save` writes."""
    content: dict[str, Any] = {"version": VERSION}
    if for_pipeline is not None:
        content["for"] = for_pipeline
    content["plugins"] = [to_dict(plugin) for plugin in plugins]
    written: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    if yaml.safe_load(written) != content:  # U+0085, a line break of YAML's, comes back as a space
        written = yaml.safe_dump(content, sort_keys=False)
    return written


def load(path: str | os.PathLike[str]) -> list[Plugin]:
    """Read the plugins of a recipe; raises as `read` does."""
    return read(path).plugins


def read(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe.

    Raises:
        FileNotFoundError: if there is no such file.
        PluginError: if the file is not a recipe of version 1; its subclasses UnknownPlugin and
            BadOption if a plugin or an option is wrong. The message begins with the path.
    """
    content = read_yaml(path)
    if not isinstance(content, Mapping):
        raise PluginError(f"{path}: a recipe is a mapping with {', '.join(KEYS)}")
    for key in content:
        if key not in KEYS:
            hint = did_you_mean(str(key), KEYS)
            raise PluginError(f"{path}: unknown key {show(key)}{hint} Keys: {', '.join(KEYS)}")
    version, for_pipeline = content.get("version"), content.get("for")
    if type(version) is not int or version != VERSION:
        raise PluginError(
            f"{path}: version is {show(version)}, this skipstep reads version: {VERSION}. "
            "For a later version update skipstep"
        )
    if not isinstance(for_pipeline, str | None):
        raise PluginError(f"{path}: `for` names a pipeline class, it is {show(for_pipeline)}")
    listed = content.get("plugins")
    if not isinstance(listed, list):
        raise PluginError(f"{path}: `plugins` is a list, it is {show(listed)}")
    plugins = [plugin_at(path, place, entry) for place, entry in enumerate(listed, start=1)]
    return Recipe(plugins, for_pipeline)


def plugin_at(path: str | os.PathLike[str], place: int, entry: object) -> Plugin:
    """Build one plugin of a recipe; a complaint says which file and which plugin."""
    if not isinstance(entry, Mapping):
        raise PluginError(f"{path}: plugin {place} is {show(entry)}, write `- name: easycache`")
    try:
        return build(entry)
    except PluginError as error:
        raise type(error)(f"{path}: plugin {place}: {error}") from None


def read_yaml(path: str | os.PathLike[str]) -> object:
    """Read one small YAML document of plain data."""
    with Path(path).open("rb") as file:
        raw = file.read(LARGEST_BYTES + 1)
    if len(raw) > LARGEST_BYTES:
        raise PluginError(f"{path}: larger than {LARGEST_BYTES} bytes, which is no recipe")
    try:
        # StrictLoader is a SafeLoader: it makes plain data only.
        return yaml.load(raw.decode("utf-8"), Loader=StrictLoader)
    except RecursionError:
        raise PluginError(f"{path}: nested too deeply to be a recipe") from None
    except (yaml.YAMLError, ValueError) as error:
        raise PluginError(f"{path}: not readable as a recipe: {error}") from None
