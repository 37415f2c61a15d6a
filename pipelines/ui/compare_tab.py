"""The tab that measures: several recipes on several prompts, with fewer plain steps beside each.

The outcome is the page that `skipstep compare` writes, shown in a frame that can load nothing, and
as files to keep.
"""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from skipstep.pipelines.batch.stopping import Stop
from skipstep.pipelines.compare.comparison import Comparison
from skipstep.pipelines.compare.page import page as compare_page
from skipstep.pipelines.compare.run import compare
from skipstep.pipelines.progress import Progress
from skipstep.pipelines.ui.fragments import outlook
from skipstep.pipelines.ui.limits import Limits, read_arms_text, read_prompts, read_settings
from skipstep.pipelines.ui.long_runs import Result, Step, progress_line, run_with_model
from skipstep.pipelines.ui.page import Page
from skipstep.pipelines.ui.reports import new_report
from skipstep.pipelines.ui.streams import Tell
from skipstep.pipelines.ui.studio import Studio, call_beside_prompt
from skipstep.pipelines.ui.watching import watched
from skipstep.plugins.errors import PluginError

__all__ = ["CompareTab", "run_compare", "save_comparison"]

OUTLOOK = (
    "A verdict for every recipe comes here, fidelity against cost, all numbers, and the pictures "
    "side by side."
)
PROMPTS = (
    "grinning face, flat style\nstrawberry, 3d style\nghost, flat style, on a purple background"
)
RECIPES = "abcache:interval=2\nabcache:interval=3\neasycache:threshold=0.05"
# The page around the frame hears how tall its content is (style.py); a frame cannot say it itself.
GROW = """<style>main { max-width: none; padding: 0; } body { overflow-y: hidden; }</style>
<script>new ResizeObserver(() => parent.postMessage(
  { height: document.documentElement.offsetHeight }, "*")).observe(document.body)</script>"""


def run_compare(
    studio: Studio,
    limits: Limits,
    *,
    model: str,
    prompts: object,
    recipes: object,
    steps: object,
    seed: object,
) -> Iterator[Any]:
    """Yield Steps and at last a Result with the Comparison.

    Raises PluginError for what is not allowed.
    """
    wanted, arms = read_prompts(prompts, limits), read_arms_text(recipes, limits)
    row = read_settings({"prompt": wanted[0], "steps": steps, "seed": seed}, limits)
    # Each arm, the uncached one, and fewer steps beside them; two rounds warm up.
    calls = (len(wanted) + 1) * (2 * len(arms) + 2)
    if calls > limits.calls:
        raise PluginError(
            f"{len(wanted)} prompts and {len(arms)} recipes are {calls} pipeline calls: at most "
            f"{limits.calls} are allowed here"
        )

    def action(pipe: Any, progress: Progress, stop: Stop, tell: Tell) -> Comparison:
        return compare(
            pipe,
            wanted,
            arms,
            steps=row.steps,
            seed=row.seed,
            progress=progress,
            **call_beside_prompt(pipe, row),
            **watched(pipe, stop, lambda step, latents: None),
        )

    return run_with_model(studio, model, action)


def save_comparison(outcome: Comparison, reports: Path) -> list[str]:
    """Write page, sheet and numbers into a folder of their own."""
    folder = new_report(reports)
    outcome.save(folder)
    return [str(path) for path in sorted(folder.iterdir())]


def framed(outcome: Comparison) -> str:
    """Return the page in a frame of its own: its scripts reach neither this page nor a network."""
    whole = compare_page(outcome).replace("</body>", f"{GROW}</body>")
    return (
        '<iframe class="frame" title="Comparison" sandbox="allow-scripts" '
        f'srcdoc="{escape(whole, quote=True)}"></iframe>'
    )


class CompareTab:
    """Lays the tab out and connects it."""

    def __init__(self, page: Page, model: Any) -> None:
        self.page = page
        gradio = page.gradio
        gradio.HTML(
            '<p class="soft">Every recipe makes the same pictures as the plain pipeline, in turns; '
            "beside each stands the plain pipeline with as many steps as cost the same.</p>"
        )
        with gradio.Row(equal_height=True):
            self.prompts = gradio.Textbox(
                PROMPTS,
                label="Prompts, one a line",
                lines=5,
                max_lines=16,
                elem_id="compare-prompts",
            )
            self.recipes = gradio.Textbox(
                RECIPES,
                label="Recipes, one a line",
                lines=5,
                max_lines=8,
                elem_id="compare-recipes",
            )
            with gradio.Column(min_width=220, scale=0):
                self.steps = gradio.Slider(
                    2, page.limits.steps, value=20, step=1, label="Steps", elem_id="compare-steps"
                )
                self.seed = gradio.Number(0, label="First seed", precision=0, minimum=0)
        buttons = page.buttons("Compare", "compare")
        status = gradio.HTML("", elem_id="compare-status")
        files = gradio.File(
            label="To keep: the page, all pictures on one sheet, all numbers",
            file_count="multiple",
            interactive=False,
            visible=False,
        )
        shown = gradio.HTML(outlook(OUTLOOK), elem_id="comparison")
        outputs = [status, shown, files]
        fields = [model, self.prompts, self.recipes, self.steps, self.seed]
        page.connect_run(buttons, self.run, fields, outputs)

    def run(
        self, model: str, prompts: str, recipes: str, steps: float, seed: float
    ) -> Iterator[tuple[Any, ...]]:
        """Compare, telling how far it is."""
        update = self.page.gradio.update
        events = run_compare(
            self.page.studio,
            self.page.limits,
            model=model,
            prompts=prompts,
            recipes=recipes,
            steps=steps,
            seed=seed,
        )
        yield progress_line(Step(0, 0, "waiting for the model")), "", update(visible=False)
        for event in events:
            if isinstance(event, Result):
                paths = save_comparison(event.value, self.page.reports)
                yield "", framed(event.value), update(value=paths, visible=True)
            elif isinstance(event, Step):
                yield progress_line(event), update(), update()
            else:
                yield update(), update(), update()
