"""The tab for a file of prompts: upload, watch, stop and go on, download everything."""

from typing import Any

from skipstep.pipelines.ui.batch_desk import BatchDesk, Status
from skipstep.pipelines.ui.fragments import outlook
from skipstep.pipelines.ui.long_runs import Step, progress_line
from skipstep.pipelines.ui.page import Page, private

__all__ = ["BatchTab"]

POLL_SECONDS = 1.5
OUTLOOK = (
    "How far it is comes here, then the first pictures, and at the end an archive of them all."
)


class BatchTab:
    """Lays the tab out and connects it."""

    def __init__(self, page: Page, desk: BatchDesk, model: Any, recipe: Any) -> None:
        self.page = page
        self.desk = desk
        gradio = page.gradio
        gradio.HTML(
            '<p class="soft">A file of prompts becomes a folder of pictures: .jsonl, .csv, .txt '
            "(one prompt a line) or .parquet. The recipe is the one in Create, unless a row says "
            "its own. It goes on when this tab is closed, and after Stop it can be taken up again. "
            'A line of .jsonl: <code>{"prompt": "a red heart", "seed": 7}</code></p>'
        )
        with gradio.Row(equal_height=True):
            upload = gradio.File(
                label="File of prompts",
                file_types=[".jsonl", ".csv", ".txt", ".parquet"],
                elem_id="batch-file",
                height=150,
                scale=2,
            )
            with gradio.Column(min_width=240):
                steps = gradio.Slider(2, page.limits.steps, value=20, step=1, label="Steps")
                seed = gradio.Number(0, label="Seed of rows without one", precision=0, minimum=0)
        with gradio.Row():
            go = gradio.Button("Start", variant="primary", elem_id="batch")
            stop = gradio.Button("Stop", interactive=False, elem_id="batch-stop")
            resume = gradio.Button("Resume", interactive=False, elem_id="batch-resume")
        key = gradio.State("")
        status = gradio.HTML(outlook(OUTLOOK), elem_id="batch-status")
        pictures = gradio.Gallery(
            label="The first pictures",
            columns=8,
            height=150,
            object_fit="contain",
            allow_preview=False,
            buttons=[],
            visible=False,
            interactive=False,
            elem_id="batch-pictures",
        )
        files = gradio.File(
            label="To keep", file_count="multiple", interactive=False, visible=False
        )
        timer = gradio.Timer(POLL_SECONDS, active=False)
        shown = [key, timer, status, pictures, files, go, stop, resume]
        begin = page.handled(self.start)
        go.click(begin, [upload, model, recipe, steps, seed], shown, **private(queue=False))
        stop.click(page.handled(self.stop), [key], shown, **private(queue=False))
        resume.click(page.handled(self.resume), [key], shown, **private(queue=False))
        timer.tick(page.handled(self.look), [key], shown, **private(queue=False))

    def start(self, upload: Any, model: str, recipe: str, steps: Any, seed: Any) -> tuple[Any, ...]:
        """Begin a job."""
        return self.look(
            self.desk.start(upload, model=model, recipe=recipe, steps=steps, seed=seed)
        )

    def stop(self, key: str) -> tuple[Any, ...]:
        """Ask the job to end."""
        self.desk.stop(key)
        return self.look(key)

    def resume(self, key: str) -> tuple[Any, ...]:
        """Go on with the job."""
        self.desk.resume(key)
        return self.look(key)

    def look(self, key: str) -> tuple[Any, ...]:
        """Show how far the job is."""
        update = self.page.gradio.update
        status = self.desk.status(key)
        is_running = status.state == "running"
        return (
            key,
            self.page.gradio.Timer(active=is_running),
            in_html(status),
            update(value=list(status.pictures), visible=bool(status.pictures)),
            update(value=list(status.files), visible=bool(status.files)),
            update(interactive=not is_running),
            update(interactive=is_running),
            update(interactive=status.state in ("stopped", "failed")),
        )


def in_html(status: Status) -> str:
    """Return how far a job is, in words and as a bar."""
    total = status.total or 0
    what: str = "pictures" if status.state == "running" else status.state
    words = f"{what}; {status.words}" if status.words else what
    if not total:
        return progress_line(Step(0, 0, f"{status.state}: {status.words or 'loading the model'}"))
    return progress_line(Step(status.done, total, words))
