"""The web UI: one prompt, the plain picture beside the one with a plugin, and what was skipped.

    python app.py      or, installed,      skipstep-app

It listens on this machine only, and neither the server nor the page loads or sends anything
elsewhere.
"""

import os
import time
from typing import Any, NamedTuple

import torch
from PIL.Image import Image

__all__ = ["Pair", "build_app", "main", "make_pair", "working_plugins"]

LARGEST_SEED = 2**32 - 1


class Pair(NamedTuple):
    """The plain picture, the picture with the plugin, and what the plugin did, in text."""

    plain: Image
    accelerated: Image
    text: str


def make_pair(pipe: Any, prompt: str, plugin: str, seed: int, steps: int) -> Pair:
    """Make one picture twice from the same noise: without plugins, then with one.

    Args:
        pipe: a text-to-image pipeline.
        prompt: what to draw.
        plugin: a name, or a name with options such as "easycache:threshold=0.1".
        seed: seed of the noise.
        steps: denoising steps.

    Raises:
        PluginError: if the plugin is unknown, an option is wrong, or it does not fit the pipeline.
    """
    from skipstep.plugins import build, parse_spec

    chosen = build(*parse_spec(plugin))

    def picture() -> tuple[Image, float]:
        generator = torch.Generator("cpu").manual_seed(seed)
        start = time.perf_counter()
        output = pipe(prompt, num_inference_steps=steps, generator=generator)
        return output.images[0], time.perf_counter() - start

    with pipe.plugins_off():
        plain, plain_seconds = picture()
    with pipe.plugins(chosen):
        accelerated, seconds = picture()
        report = pipe.plugin_report()
    text = (
        f"Plain: {plain_seconds:.2f} s. With {plugin}: {seconds:.2f} s. One run each, for a first "
        f"impression; `skipstep compare` measures.\n\n{report}"
    )
    return Pair(plain, accelerated, text)


def working_plugins(pipe: Any) -> list[str]:
    """List the names of the plugins that can serve a pipeline with their default options."""
    return [row.name for row in pipe.list_plugins().rows if row.why_not is None]


def build_app(pipe: Any) -> Any:
    """Lay the page out for a pipeline and return the gradio Blocks, not yet launched.

    Raises:
        ImportError: if gradio is not installed; the message says how to install it.
    """
    gradio = import_gradio()
    from skipstep.plugins import PluginError

    def run(prompt: str, plugin: str, seed: float, steps: float) -> tuple[Any, str]:
        try:
            pair = make_pair(pipe, prompt, plugin, int(seed), int(steps))
        except PluginError as error:
            raise gradio.Error(str(error), print_exception=False) from None
        return (pair.plain, pair.accelerated), pair.text

    names = working_plugins(pipe)
    with gradio.Blocks(title="skipstep", analytics_enabled=False) as page:
        gradio.Markdown(f"# skipstep\n{type(pipe).__name__}: the same noise, without and with")
        prompt = gradio.Textbox("a pizza, 3d style, on a blue background", label="Prompt")
        with gradio.Row():
            plugin = gradio.Dropdown(
                names,
                value="easycache" if "easycache" in names else names[0],
                label="Plugin",
                info="or with options: easycache:threshold=0.1",
                allow_custom_value=True,
            )
            seed = gradio.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED)
            steps = gradio.Slider(2, 50, value=20, step=1, label="Steps")
        button = gradio.Button("Make both pictures", variant="primary")
        slider = gradio.ImageSlider(label="plain | accelerated", type="pil", interactive=False)
        report = gradio.Textbox(label="Report", lines=12, interactive=False)
        # One pipeline serves everyone and its plugins change between runs: runs wait in line.
        button.click(
            run,
            [prompt, plugin, seed, steps],
            [slider, report],
            concurrency_limit=1,
            api_name=False,
        )
    return page


def import_gradio() -> Any:
    """Import gradio with its analytics off, or say how to install it."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ImportError(
            'the web UI needs gradio, which is not installed: pip install "skipstep[app]"'
        ) from error
    return gradio


def main() -> None:
    """Serve the page for the reference model on 127.0.0.1."""
    gradio = import_gradio()
    import skipstep

    pipe = skipstep.load_reference()
    pipe.set_progress_bar_config(disable=True)
    pipe("a sun, flat style", num_inference_steps=1)  # the first run of a process is a slow one
    # Named fonts: gradio's own themes load theirs from a server of fonts.
    theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    build_app(pipe).launch(
        server_name="127.0.0.1", share=False, theme=theme, footer_links=[], inbrowser=False
    )


if __name__ == "__main__":
    main()
