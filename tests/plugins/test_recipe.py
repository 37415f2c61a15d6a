"""Recipes: what is saved comes back, and a hostile file is refused in words."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skipstep.plugins.errors import BadOption, PluginError, UnknownPlugin
from skipstep.plugins.recipe import load, read, save

FIELDS = {
    "threshold": st.floats(0, 1, exclude_min=True),
    "warmup_steps": st.integers(1, 50),
    "metric": st.sampled_from(["l1", "l2"]),
    # Without surrogates, which no text file can hold.
    "label": st.text(st.characters(exclude_categories=["Cs"])),
    "limit": st.none() | st.integers(50, 10**9),
    "sizes": st.lists(st.integers(-5, 5), max_size=3).map(tuple),
    "gate": st.one_of(
        st.fixed_dictionaries({"type": st.just("often"), "every": st.integers(1, 9)}),
        st.fixed_dictionaries(
            {"type": st.just("seldom"), "chance": st.floats(0, 1, exclude_min=True)}
        ),
    ),
}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(options=st.fixed_dictionaries({}, optional=FIELDS), for_pipeline=st.none() | st.just("Flux"))
def test_what_is_saved_comes_back(
    toys: Any, tmp_path: Path, options: dict[str, Any], for_pipeline: str | None
) -> None:
    plugins = [toys.Toy(**options), toys.Bare()]
    save(tmp_path / "fast.yaml", plugins, for_pipeline=for_pipeline)
    recipe = read(tmp_path / "fast.yaml")
    assert recipe.plugins == plugins
    assert recipe.for_pipeline == for_pipeline
    assert load(tmp_path / "fast.yaml") == plugins


def test_a_recipe_reads_as_it_is_documented(toys: Any, tmp_path: Path) -> None:
    path = tmp_path / "fast.yaml"
    save(path, [toys.Toy(threshold=0.08), toys.Bare()], for_pipeline="FluxPipeline")
    assert path.read_text() == (
        "version: 1\n"
        "for: FluxPipeline\n"
        "plugins:\n"
        "- name: toy\n"
        "  options:\n"
        "    threshold: 0.08\n"
        "- name: bare\n"
        "  options: {}\n"
    )


def test_extreme_numbers_come_back(toys: Any, tmp_path: Path) -> None:
    tiny = math.nextafter(0.0, 1.0)
    save(tmp_path / "r.yaml", [toys.Toy(threshold=tiny, limit=10**30)])
    assert load(tmp_path / "r.yaml") == [toys.Toy(threshold=tiny, limit=10**30)]


def test_unusual_line_breaks_come_back(toys: Any, tmp_path: Path) -> None:
    save(tmp_path / "r.yaml", [toys.Toy(label="a\x85b\u2028c")])
    assert load(tmp_path / "r.yaml") == [toys.Toy(label="a\x85b\u2028c")]


GOOD = "version: 1\nplugins:\n- name: toy\n"
MISTAKES = {
    "": "a recipe is a mapping with version, plugins, for",
    "- 1\n": "a recipe is a mapping",
    "version: 1\nplugin: []\n": "unknown key 'plugin', did you mean 'plugins'? Keys: version, ",
    "version: 1\nplugins: []\n3: x\n": "unknown key 3. Keys: version, plugins, for",
    "plugins: []\n": "version is None, this skipstep reads version: 1.",
    "version: 2\nplugins: []\n": "version is 2, this skipstep reads version: 1.",
    "version: true\nplugins: []\n": "version is True, ",
    "version: '1'\nplugins: []\n": "version is '1', ",
    "version: 1\n": "`plugins` is a list, it is None",
    "version: 1\nplugins: {name: toy}\n": "`plugins` is a list, it is {'name': 'toy'}",
    "version: 1\nplugins: [toy]\n": "plugin 1 is 'toy', write `- name: easycache`",
    "version: 1\nfor: [a]\nplugins: []\n": "`for` names a pipeline class, it is ['a']",
    GOOD + "version: 1\n": "not readable as a recipe: line 4: key 'version' is given twice",
    GOOD + "  options: {limit: 3, limit: 4}\n": "line 4: key 'limit' is given twice",
    "version: 1\nplugins: [": "not readable as a recipe: ",
    "version: 1\nplugins: []\n---\nversion: 1\n": "not readable as a recipe: expected a single",
    "version: 1\nplugins: &a\n- *a\n": "a recipe has no anchors and no aliases",
    "a: &a [x, x]\nb: [*a, *a]\n": "a recipe has no anchors and no aliases",
    "version: !!python/object/apply:os.system ['true']\n": "could not determine a constructor",
    "!!python/name:os.system": "could not determine a constructor",
    "version: 1\nplugins: " + "[" * 3000: "nested too deeply to be a recipe",
    "version: 1\nplugins: 2026-13-40\n": "not readable as a recipe: month must be in 1..12",
    "version: 1\nplugins: \x00\n": "not readable as a recipe: ",
    "{[1]: 2}": "not readable as a recipe: ",
}


@pytest.mark.parametrize("text", MISTAKES, ids=lambda text: text[:30].replace("\n", "|"))
def test_a_mistake_is_refused_in_words(toys: Any, tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(PluginError) as caught:
        load(path)
    assert type(caught.value) is PluginError
    assert str(caught.value).startswith(f"{path}: ")
    assert MISTAKES[text] in str(caught.value)


def test_a_wrong_plugin_says_which_file_and_which_plugin(toys: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(GOOD + "- name: toi\n")
    with pytest.raises(UnknownPlugin, match=r"bad.yaml: plugin 2: unknown plugin 'toi': did you "):
        load(path)
    path.write_text(GOOD + "  options: {treshold: 1}\n")
    with pytest.raises(BadOption, match=r"bad.yaml: plugin 1: toy: unknown option 'treshold', di"):
        load(path)
    path.write_text(GOOD + "  optoins: {}\n")
    with pytest.raises(BadOption, match=r"plugin 1: a plugin has no key 'optoins', did you mean"):
        load(path)


def test_a_large_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(PluginError, match="larger than 1000000 bytes, which is no recipe"):
        load(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.yaml"
    path.write_bytes(b"\x80\x02]q\x00")
    with pytest.raises(PluginError, match="not readable as a recipe"):
        load(path)


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.yaml")


@given(data=st.binary(max_size=200))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused_in_words(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(data)
    with pytest.raises(PluginError):
        load(path)
