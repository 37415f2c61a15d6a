"""The tab where a target is given instead of a knob: trials as they come, the front, the recipe."""

from collections.abc import Iterator
from html import escape
from typing import Any

from skipstep.pipelines.batch.stopping import Stop
from skipstep.pipelines.progress import Progress
from skipstep.pipelines.tune.autotune import autotune
from skipstep.pipelines.tune.request import TARGETS
from skipstep.pipelines.tune.tuning import Tuning
from skipstep.pipelines.ui.controls import recipe_words
from skipstep.pipelines.ui.fragments import outlook
from skipstep.pipelines.ui.limits import (
    Limits,
    read_count,
    read_number,
    read_prompts,
    read_settings,
)
from skipstep.pipelines.ui.long_runs import Result, Step, progress_line, run_with_model
from skipstep.pipelines.ui.page import Page, redrawing
from skipstep.pipelines.ui.scatter import Point, scatter
from skipstep.pipelines.ui.streams import Tell
from skipstep.pipelines.ui.studio import Studio
from skipstep.plugins.errors import PluginError
from skipstep.plugins.options import show, to_dict

__all__ = ["AutotuneTab", "recipe_of", "run_autotune"]

MEANINGS = {
    "target_speedup": "at least so many times less work",
    "max_feature_distance": "at most this feature distance",
    "min_psnr": "at least so many decibels",
}
MOST_TRIALS = 60
OUTLOOK = (
    "The recipe that was found comes here, what it costs and what fewer plain steps would give, "
    "and a button that puts it into Create."
)
FIGURES = ("work", "speed-up", "PSNR", "LPe")


def run_autotune(
    studio: Studio,
    limits: Limits,
    *,
    model: str,
    target: object,
    value: object,
    prompts: object,
    steps: object,
    trials: object,
    minutes: object,
) -> Iterator[Any]:
    """Yield Steps and at last a Result with the Tuning; nothing stays switched on.

    Raises PluginError for what is not allowed.
    """
    if target not in TARGETS:
        raise PluginError(f"target {show(target)} is not known: {', '.join(TARGETS)}")
    goal = read_number("the target's value", value, 0.0, 1000.0)
    most = read_count("trials", trials, 1, MOST_TRIALS)
    budget = read_number("minutes", minutes, 0.05, limits.minutes)
    is_given = isinstance(prompts, str) and bool(prompts.strip())
    wanted = read_prompts(prompts, limits) if is_given else None
    row = read_settings({"prompt": "a", "steps": steps}, limits)

    def action(pipe: Any, progress: Progress, stop: Stop, tell: Tell) -> Tuning:
        asked: dict[str, Any] = {str(target): goal}
        try:
            return autotune(
                pipe,
                wanted,
                **asked,
                steps=row.steps,
                trials=most,
                budget_minutes=budget,
                progress=progress,
            )
        finally:
            pipe.disable_plugins()

    return run_with_model(studio, model, action)


def recipe_of(tuning: Tuning) -> str:
    """Return the recipe that was found, in one line."""
    return recipe_words([to_dict(plugin) for plugin in tuning.plugins])


def chart(tuning: Tuning) -> str:
    """Return all trials: work against distance."""
    points = [
        Point(
            trial.outcome.work,
            trial.outcome.distance,
            trial.name,
            "fewer" if trial.params["method"] == "fewer" else "plugins",
            trial is tuning.best,
        )
        for trial in tuning.trials
    ]
    return scatter(points, y_name="feature distance (lower is closer)")


def summary(tuning: Tuning) -> str:
    """Return what was found, in words and as the front's table."""
    held = tuning.held_out
    lines = "".join(
        f'<tr><th scope="row">{escape(trial.name)}'
        f"{' (chosen)' if trial is tuning.best else ''}</th>"
        f'<td class="number">{trial.outcome.work:.0%}</td>'
        f'<td class="number">{1 / trial.outcome.work:.2f}x</td>'
        f'<td class="number">{trial.outcome.psnr:.1f} dB</td>'
        f'<td class="number">{trial.outcome.distance:.4f}</td></tr>'
        for trial in tuning.front
    )
    heads = "".join(
        f'<th scope="col"{kind}>{name}</th>'
        for name, kind in [("arm", ""), *((each, ' class="number"') for each in FIGURES)]
    )
    unseen = len(tuning.held_out_prompts)
    found = (
        f"{tuning.best.name}: {1 / held.work:.2f}x less work, {held.psnr:.1f} dB on "
        f"{unseen} prompt{'' if unseen == 1 else 's'} that no trial saw. {tuning.promise()} "
        f"{tuning.versus_plain()}"
    )
    return (
        f'<p class="verdict" role="status">{escape(found)}</p>'
        '<div class="wide"><table><caption class="unseen">Pareto front</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


class AutotuneTab:
    """Lays the tab out and connects it."""

    def __init__(self, page: Page, model: Any, recipe: list[Any], use: Any) -> None:
        """Take the form's model and its parts that a recipe is put into by `use`."""
        self.page = page
        gradio = page.gradio
        gradio.HTML(
            '<p class="soft">Planned schedules, adaptive caches, other solvers and fewer plain '
            "steps are tried; the winner is judged on prompts that no trial saw.</p>"
        )
        with gradio.Row(equal_height=True):
            target = gradio.Dropdown(
                [(words, name) for name, words in MEANINGS.items()],
                value="target_speedup",
                label="Target",
                elem_id="tune-target",
                scale=2,
            )
            value = gradio.Number(2.0, label="Value", minimum=0, step=0.1, elem_id="tune-value")
            most = page.limits.steps
            steps = gradio.Slider(2, most, value=min(20, most), step=1, label="Steps")
            trials = gradio.Slider(1, MOST_TRIALS, value=12, step=1, label="Trials")
            minutes = gradio.Number(5, label="Minutes", minimum=0.05, maximum=page.limits.minutes)
        prompts = gradio.Textbox(
            "",
            label="Prompts to tune on, one a line",
            info="a dozen of the sort that you use; empty: the reference model's own",
            lines=2,
            max_lines=16,
        )
        buttons = page.buttons("Find the recipe", "tune")
        status = gradio.HTML("", elem_id="tune-status")
        words = gradio.HTML(outlook(OUTLOOK), elem_id="tune-summary")
        drawn = gradio.HTML("", elem_id="tune-chart")
        with gradio.Row():
            take = gradio.Button(
                "Use it in Create", visible=False, elem_id="tune-use", scale=0, min_width=200
            )
        line = gradio.Textbox(
            label="Recipe",
            elem_id="tune-recipe",
            interactive=False,
            visible=False,
            buttons=["copy"],
            max_lines=3,
            elem_classes="code",
        )
        fields = [model, target, value, prompts, steps, trials, minutes]
        page.connect_run(buttons, self.run, fields, [status, words, drawn, line, take])
        take.click(page.handled(use), [line], recipe, **redrawing())

    def run(self, *given: Any) -> Iterator[tuple[Any, ...]]:
        """Tune, telling how far it is."""
        update = self.page.gradio.update
        names = ("model", "target", "value", "prompts", "steps", "trials", "minutes")
        fields = dict(zip(names, given, strict=True))
        events = run_autotune(self.page.studio, self.page.limits, **fields)
        hidden, same = update(visible=False), update()
        yield progress_line(Step(0, 0, "waiting for the model")), "", "", hidden, hidden
        for event in events:
            if isinstance(event, Result):
                shown = update(value=recipe_of(event.value), visible=True)
                has_recipe = bool(event.value.plugins)
                yield (
                    "",
                    summary(event.value),
                    chart(event.value),
                    shown if has_recipe else hidden,
                    update(visible=has_recipe),
                )
            elif isinstance(event, Step):
                yield progress_line(event), same, same, same, same
            else:
                yield same, same, same, same, same
