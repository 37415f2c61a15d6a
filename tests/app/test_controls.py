"""Controls are made from the options' schema, and what they hold is a recipe that is valid."""

from typing import Any

import pytest

from skipstep.pipelines.reference import load_reference
from skipstep.pipelines.ui.controls import Control, controls_of, recipe_words, with_values
from skipstep.pipelines.ui.limits import read_recipe
from skipstep.pipelines.ui.presets import NONE, PLANNED, STUDENT, presets_of
from skipstep.plugins import catalog
from skipstep.plugins.errors import BadOption
from skipstep.plugins.options import build, to_dict
from skipstep.testing import tiny_pipeline


@pytest.mark.parametrize("name", catalog.names())
def test_untouched_controls_are_the_defaults(name: str) -> None:
    values = [control.value for control in controls_of(name)]
    assert with_values(name, values) == {"name": name, "options": {}}


def test_each_sort_of_option_has_its_control() -> None:
    found = {control.name: control for control in controls_of("easycache")}
    assert found["delta"].sort == "box" and found["delta"].value is True
    assert found["threshold"].sort == "number" and found["threshold"].maximum == 10
    skips = found["max_skips"]
    assert (skips.sort, skips.value) == ("text", "") and "empty is none" in skips.about
    assert skips.read("") is None and skips.read("3") == 3
    interval = next(each for each in controls_of("abcache") if each.name == "interval")
    assert (interval.sort, interval.value, interval.step) == ("slider", 3, 1)
    gate = next(each for each in controls_of("cache") if each.name == "gate")
    assert gate.sort == "text" and gate.read(gate.value)["type"] == "first_block"
    given = {each.name: each.value for each in controls_of("easycache", {"threshold": 0.2})}
    assert given["threshold"] == 0.2


def test_changed_controls_spell_a_recipe_that_reads_back() -> None:
    values: list[Any] = [control.value for control in controls_of("easycache")]
    names = [control.name for control in controls_of("easycache")]
    values[names.index("threshold")] = 0.2
    values[names.index("max_skips")] = "3"
    listed = [with_values("easycache", values), {"name": "textkv", "options": {}}]
    words = recipe_words(listed)
    assert words == "easycache:max_skips=3,threshold=0.2 + textkv"
    assert [to_dict(plugin) for plugin in read_recipe(words)] == listed


def test_none_is_written_so_that_it_reads_back() -> None:
    listed = [to_dict(build("teacache", {"max_skips": None}))]
    assert recipe_words(listed) == "teacache:max_skips=null"
    assert read_recipe(recipe_words(listed))[0].max_skips is None


def test_wrong_values_are_refused_as_everywhere() -> None:
    controls = controls_of("easycache")
    values: list[Any] = [11 if each.name == "threshold" else each.value for each in controls]
    with pytest.raises(BadOption, match="threshold=11 is not allowed"):
        with_values("easycache", values)
    with pytest.raises(BadOption, match="gate='{' is not a YAML value"):
        Control("gate", "text", "", "").read("{")


def test_presets_work_on_the_pipeline_they_are_offered_for(reference: Any) -> None:
    found = presets_of(reference)
    assert found[NONE] == "" and {PLANNED, STUDENT} <= set(found)
    for recipe in found.values():
        with reference.plugins(*read_recipe(recipe)):
            pass
    assert not {PLANNED, STUDENT} & set(presets_of(load_reference("picture256")))
    flux = presets_of(tiny_pipeline("flux").pipe)
    assert PLANNED not in flux and not any("UNet" in name for name in flux)
    assert any("UNet" in name for name in presets_of(tiny_pipeline("sdxl").pipe))
