"""The web UI: one prompt, the plain picture beside the accelerated one, and what was skipped.

    python app.py      or, installed,      skipstep-app

It listens on this machine only unless it is told otherwise, and then wants to know who may come in.
Neither the server nor the page loads or sends anything elsewhere.
"""

import getpass
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from skipstep.pipelines.ui.limits import Limits
from skipstep.pipelines.ui.offered import REFERENCE, default_models, makes_clips
from skipstep.pipelines.ui.server import (
    import_gradio,
    is_loopback,
    launch_settings,
    queue_settings,
    share_heaps,
)
from skipstep.pipelines.ui.studio import Studio
from skipstep.plugins.errors import PluginError

__all__ = ["build_app", "main", "serve"]

TITLE = '<div class="head"><h1>skipstep</h1><p>the same noise, less work</p></div>'


def build_app(studio: Studio, folder: Path, limits: Limits | None = None) -> Any:
    """Lay the page out and return the gradio Blocks, not yet launched.

    Args:
        studio: the models; the first of them that makes pictures is loaded here.
        folder: where the server keeps its files.

    Raises:
        ImportError: if gradio is not installed; the message says how to install it.
    """
    gradio = import_gradio(folder)
    from skipstep.pipelines.ui.album import Album
    from skipstep.pipelines.ui.api import Api
    from skipstep.pipelines.ui.autotune_tab import AutotuneTab
    from skipstep.pipelines.ui.batch_desk import BatchDesk
    from skipstep.pipelines.ui.batch_tab import BatchTab
    from skipstep.pipelines.ui.compare_tab import CompareTab
    from skipstep.pipelines.ui.create_tab import CreateTab
    from skipstep.pipelines.ui.lingering import linger
    from skipstep.pipelines.ui.page import Page, blocks_in_words
    from skipstep.pipelines.ui.plugins_tab import PluginsTab
    from skipstep.pipelines.ui.splat_tab import SplatTab
    from skipstep.pipelines.ui.sweep_tab import SweepTab
    from skipstep.pipelines.ui.video_tab import VideoTab

    clips = [name for name in studio.models if makes_clips(name)]
    stills = [name for name in studio.models if name not in clips]
    pipe = studio.use((stills or clips)[0])
    page = Page(gradio, studio, Album(folder / "files" / "pictures"), limits or Limits(), folder)
    desk = BatchDesk(folder / "files" / "batches", studio, page.limits)
    with blocks_in_words(gradio)(
        title="skipstep", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True
    ) as ui:
        gradio.HTML(TITLE)
        with gradio.Tabs(selected=None if stills else "video"):
            with gradio.Tab("Create", id="create"):
                create = CreateTab(page, stills or clips, pipe)
            if clips:
                with gradio.Tab("Video", id="video") as tab:
                    video = VideoTab(page, clips, None if stills else pipe)
                video.connect(tab)
            model = create.form.model
            with gradio.Tab("Compare", id="compare"):
                CompareTab(page, model)
            with gradio.Tab("Sweep", id="sweep"):
                SweepTab(page, model)
            with gradio.Tab("Autotune", id="autotune"):
                AutotuneTab(page, model, create.form.box.parts, create.form.box.take)
            with gradio.Tab("3D", id="3d"):
                SplatTab(page, model)
            with gradio.Tab("Batch", id="batch"):
                BatchTab(page, desk, model, create.form.box.recipe)
            with gradio.Tab("Plugins", id="plugins"):
                PluginsTab(page, model)
        Api(page, desk)
    ui.queue(**queue_settings())
    linger(ui)
    return ui


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A model to offer; several: repeat -m."),
    ] = None,
    any_model: Annotated[
        bool | None,
        typer.Option(help="Let people type other folders and hub ids; default: on loopback only."),
    ] = None,
    listen: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Else the first free.")] = None,
    share: Annotated[bool, typer.Option(help="Also reachable through gradio's tunnel.")] = False,
    auth_file: Annotated[Path | None, typer.Option(help="Who may come in; see --add-user.")] = None,
    add_user: Annotated[
        str | None, typer.Option(help="Ask for a password, add it to --auth-file, and leave.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of torch.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Keep files here; else in a folder that goes at the end.")
    ] = None,
) -> None:
    """Serve the page."""
    from skipstep.pipelines.cli.options import use_threads
    from skipstep.pipelines.ui import users

    if add_user is not None:
        path = auth_file or Path("users.txt")
        users.add_user(path, add_user, getpass.getpass(f"Password of {add_user}: "))
        typer.echo(f"{add_user} may come in: --auth-file {path}")
        return
    share_heaps()
    limits = Limits()
    settings = launch_settings(
        limits,
        address=listen,
        port=port,
        share=share,
        users=users.read_users(auth_file) if auth_file is not None else None,
    )
    is_open = share or not is_loopback(listen)
    models = tuple(model) if model else default_models()
    use_threads(threads, None if models[0] == REFERENCE else models[0])
    studio = Studio(models, any_model=not is_open if any_model is None else any_model)
    with tempfile.TemporaryDirectory(prefix="skipstep-app-") as own:
        place = Path(own) if folder is None else folder
        place.mkdir(parents=True, exist_ok=True)
        page = build_app(studio, place, limits)
        page.launch(**settings, **looks(import_gradio(place)))


def looks(gradio: Any) -> dict[str, Any]:
    """Return theme and style, which `launch` takes."""
    from skipstep.pipelines.ui.style import HEAD, STYLE, make_theme

    return {"theme": make_theme(gradio), "css": STYLE, "head": HEAD}


def main() -> None:
    """Run the server; a mistake of the user is one line and exit code 2."""
    try:
        typer.run(serve)
    except (PluginError, ImportError) as error:
        typer.echo(f"skipstep-app: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
