"""The tab that lists the plugins: what works on this model, why the rest does not, every option."""

from html import escape
from typing import Any

from skipstep.pipelines.plugin_tables import allowed, default_of
from skipstep.pipelines.ui import fragments
from skipstep.pipelines.ui.page import QUEUE, Page, private
from skipstep.plugins import catalog, options

__all__ = ["PluginsTab", "option_table"]


def option_table(name: str) -> str:
    """Return the options of a plugin.

    Raises UnknownPlugin.
    """
    plugin = catalog.load(name)
    schema = options.schema(plugin)
    known = schema.get("$defs", {})
    lines = "".join(
        f'<tr class="yes"><th scope="row">{escape(option)}</th>'
        f"<td>{escape(default_of(about))[:200]}</td><td>{escape(allowed(about, known))}</td>"
        f"<td>{escape(about.get('description', ''))}</td></tr>"
        for option, about in schema.get("properties", {}).items()
    )
    names = ("option", "default", "allowed", "meaning")
    heads = "".join(f'<th scope="col">{each}</th>' for each in names)
    return (
        f'<p class="soft">{escape(plugin.summary)}</p><div class="wide"><table>'
        f'<caption class="unseen">Options of {escape(name)}</caption><thead><tr>{heads}</tr>'
        f"</thead><tbody>{lines}</tbody></table></div>"
    )


class PluginsTab:
    """Lays the tab out and connects it."""

    def __init__(self, page: Page, model: Any) -> None:
        self.page = page
        gradio = page.gradio
        names = catalog.names()
        listed = gradio.HTML(
            fragments.plugin_table(page.studio.pipe.list_plugins()), elem_id="plugin-table"
        )
        gradio.HTML("<h2>Options</h2>")
        chosen = gradio.Dropdown(names, value=names[0], label="Plugin", elem_id="plugin-choice")
        shown = gradio.HTML(option_table(names[0]), elem_id="plugin-options")
        chosen.change(page.handled(option_table), [chosen], [shown], **private(queue=False))
        model.change(page.handled(self.list), [model], [listed], **private(**QUEUE))

    def list(self, model: str) -> str:
        """List the catalogue for another model."""
        studio = self.page.studio
        with studio.lock:
            return fragments.plugin_table(studio.use(model).list_plugins())
