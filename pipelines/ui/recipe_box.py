"""Choosing what is switched on: a preset, plugins with a control for each option, or one line.

The line is what counts: presets and controls write it, a request carries it, and the command line
takes it too (-p). Controls are made from the options' JSON schema (controls.py).
"""

from typing import Any

from skipstep.pipelines.ui.controls import Control, controls_of, recipe_words, with_values
from skipstep.pipelines.ui.limits import read_recipe
from skipstep.pipelines.ui.page import Page, private, redrawing
from skipstep.pipelines.ui.presets import CUSTOM, NONE, PLANNED, presets_of
from skipstep.plugins import catalog
from skipstep.plugins.errors import PluginError
from skipstep.plugins.options import to_dict

__all__ = ["RecipeBox", "working"]

PREFERRED = (PLANNED, "balanced: every other step")

Listed = list[dict[str, Any]]


def working(pipe: Any) -> list[str]:
    """Return the plugins that work on a pipeline with their defaults."""
    return [row.name for row in pipe.list_plugins().rows if row.why_not is None]


class RecipeBox:
    """The part of a form that says which plugins are on, and how.

    Args:
        pipe: the pipeline that it is for; None offers nothing until `offer` is called.
        prefix: goes before the ids of the elements.
    """

    def __init__(self, page: Page, pipe: Any, prefix: str = "") -> None:
        self.page = page
        self.prefix = prefix
        gradio = page.gradio
        presets = {NONE: ""} if pipe is None else presets_of(pipe)
        self.presets = gradio.State(presets)
        first = next((name for name in PREFERRED if name in presets), NONE)
        chosen, names = self.read(presets[first])
        self.preset = gradio.Dropdown(
            [*presets, CUSTOM], value=first, label="Preset", elem_id=f"{prefix}preset"
        )
        self.plugins = gradio.Dropdown(
            [] if pipe is None else working(pipe),
            value=names,
            label="Plugins",
            info="several of different kinds work together",
            multiselect=True,
            allow_custom_value=True,
            elem_id=f"{prefix}plugins",
        )
        self.chosen = gradio.State(chosen)
        self.recipe = gradio.Textbox(
            presets[first],
            label="Recipe",
            info="what is switched on, in one line, as on the command line",
            lines=1,
            max_lines=2,
            max_length=20_000,
            elem_id=f"{prefix}recipe",
            elem_classes="code",
            render=False,
        )

        @gradio.render(inputs=[self.chosen])  # type: ignore[untyped-decorator]
        def options(chosen: Listed) -> None:
            self.render(chosen)

        self.recipe.render()
        self.parts = [self.recipe, self.chosen, self.preset, self.plugins]
        self.offered = [self.preset, self.plugins, self.recipe, self.chosen, self.presets]
        self.connect()

    def connect(self) -> None:
        """Say what happens when."""
        gradio, page = self.page.gradio, self.page
        self.preset.input(
            page.handled(self.choose_preset),
            [self.preset, self.presets],
            [self.recipe, self.chosen, self.plugins],
            **redrawing(),
        )
        self.plugins.input(
            page.handled(self.choose_plugins),
            [self.plugins, self.recipe],
            [self.recipe, self.chosen, self.preset],
            **redrawing(),
        )
        gradio.on(
            [self.recipe.submit, self.recipe.blur],
            page.handled(self.type_recipe),
            [self.recipe, self.chosen],
            self.parts,
            **redrawing(),
        )

    def read(self, recipe: str) -> tuple[Listed, list[str]]:
        """Return a recipe as data, and the names in it."""
        listed = [to_dict(plugin) for plugin in read_recipe(recipe)]
        return listed, [entry["name"] for entry in listed]

    def offer(self, pipe: Any) -> tuple[Any, ...]:
        """Offer what works on another pipeline, and choose its first preset: for `offered`."""
        update = self.page.gradio.update
        presets = presets_of(pipe)
        first = next((name for name in PREFERRED if name in presets), NONE)
        chosen, names = self.read(presets[first])
        return (
            update(choices=[*presets, CUSTOM], value=first),
            update(choices=working(pipe), value=names),
            presets[first],
            chosen,
            presets,
        )

    def choose_preset(self, name: str, presets: dict[str, str]) -> tuple[Any, ...]:
        """Take a preset; "my own" leaves all as it is."""
        if name not in presets:
            return (self.page.gradio.update(),) * 3
        chosen, names = self.read(presets[name])
        return presets[name], chosen, names

    def choose_plugins(self, names: list[str], recipe: str) -> tuple[Any, ...]:
        """Add and remove plugins; those that stay keep their options."""
        before = {entry["name"]: entry for entry in self.read(recipe)[0]}
        kept = [before.get(name, {"name": name, "options": {}}) for name in names or []]
        chosen, _ = self.read(recipe_words(kept))
        return recipe_words(chosen), chosen, CUSTOM if chosen else NONE

    def type_recipe(self, recipe: str, before: Listed) -> tuple[Any, ...]:
        """Take the line that was typed."""
        update = self.page.gradio.update
        if self.read(recipe)[0] == before:
            return (update(),) * 4
        return self.take(recipe)

    def is_same(self, recipe: str, words: str) -> bool:
        """Say whether two recipes mean the same; one that cannot be read means nothing."""
        try:
            return self.read(recipe) == self.read(words)
        except PluginError:
            return False

    def take(self, recipe: str) -> tuple[Any, ...]:
        """Put a recipe from elsewhere into the form; the values are those of `parts`."""
        chosen, names = self.read(recipe)
        return recipe_words(chosen), chosen, CUSTOM if chosen else NONE, names

    def render(self, chosen: Listed) -> None:
        """Draw the controls of the chosen plugins."""
        gradio = self.page.gradio
        widgets: list[Any] = []
        sorts: list[str] = []
        names = [entry["name"] for entry in chosen]
        for entry in chosen:
            plugin = catalog.load(entry["name"])
            with gradio.Accordion(f"Options of {plugin.name}", open=False, elem_classes="options"):
                for control in controls_of(entry["name"], entry.get("options")):
                    widgets.append(self.widget(control, entry["name"]))
                    sorts.append(control.sort)
        counts = [len(controls_of(name)) for name in names]

        def spell(recipe: str, *values: Any) -> tuple[Any, ...]:
            listed, start = [], 0
            for name, count in zip(names, counts, strict=True):
                listed.append(with_values(name, values[start : start + count]))
                start += count
            words = recipe_words(listed)
            # Who leaves an untouched control may be typing the next recipe already.
            if self.is_same(recipe, words):
                return (gradio.update(),) * 2
            return words, CUSTOM

        for widget, sort in zip(widgets, sorts, strict=True):
            # A text is read when it is complete; half a list is no YAML. What is not touched says
            # nothing: a control that is drawn anew would make every preset "my own".
            triggers = [widget.blur, widget.submit] if sort == "text" else [widget.input]
            gradio.on(
                triggers,
                self.page.handled(spell),
                [self.recipe, *widgets],
                [self.recipe, self.preset],
                trigger_mode="always_last",
                **private(queue=False),
            )

    def widget(self, control: Control, plugin: str) -> Any:
        """Return the widget of one option."""
        gradio = self.page.gradio
        named: dict[str, Any] = {
            "label": control.label,
            "info": control.about,
            "elem_id": f"{self.prefix}option-{plugin}-{control.name}",
        }
        if control.sort == "box":
            return gradio.Checkbox(control.value, **named)
        if control.sort == "list":
            return gradio.Dropdown(list(control.choices), value=control.value, **named)
        if control.sort == "text":
            return gradio.Textbox(control.value, max_length=20_000, max_lines=4, **named)
        bounds = {"minimum": control.minimum, "maximum": control.maximum, "step": control.step}
        if control.sort == "slider":
            return gradio.Slider(value=control.value, **bounds, **named)
        # Zero itself may be excluded; the check of the plugin says so in words.
        return gradio.Number(control.value, **bounds, **named)
