"""The web UI: what its one function does, and that the page can be built."""

import importlib.util
import sys
from typing import Any

import pytest
import torch
from PIL import Image

from skipstep.app import build_app, import_gradio, make_pair, working_plugins
from skipstep.plugins.errors import BadOption, UnknownPlugin
from skipstep.testing import tiny_pipeline

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio, of the extra `app`, is missing"
)


class TinyPictures:
    """A tiny Flux pipeline that makes 32-pixel PIL pictures of a prompt."""

    def __init__(self) -> None:
        self.tiny = tiny_pipeline("flux")
        self.noise: list[torch.Tensor] = []

    def __call__(self, prompt: str, **call: Any) -> Any:
        self.noise.append(call["generator"].get_state())
        return self.tiny.pipe(prompt, **self.tiny.call, **call)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tiny.pipe, name)


def test_both_pictures_start_from_the_same_noise() -> None:
    pipe = TinyPictures()
    pair = make_pair(pipe, "a fox", "fora:interval=2,warmup_steps=1", seed=3, steps=4)
    assert torch.equal(pipe.noise[0], pipe.noise[1])
    assert isinstance(pair.plain, Image.Image) and pair.plain.size == (32, 32)
    expected = make_pair(pipe, "a fox", "fora:interval=1", seed=3, steps=4)
    assert expected.plain.tobytes() == expected.accelerated.tobytes() == pair.plain.tobytes()
    assert pair.accelerated.tobytes() != pair.plain.tobytes()


def test_the_text_is_the_report_of_the_accelerated_run() -> None:
    pipe = TinyPictures()
    pair = make_pair(pipe, "a fox", "fora:interval=2,warmup_steps=1", seed=0, steps=4)
    assert str(pipe.plugin_report()) in pair.text
    assert "One run each" in pair.text


def test_no_plugin_stays_on_and_one_that_was_on_comes_back() -> None:
    pipe = TinyPictures()
    pipe.enable_plugin("fora", interval=3)
    make_pair(pipe, "a fox", "easycache", seed=0, steps=4)
    assert [row.name for row in pipe.list_plugins().rows if row.is_active] == ["fora"]


def test_mistakes_come_out_as_errors_of_plugins() -> None:
    pipe = TinyPictures()
    with pytest.raises(UnknownPlugin, match="did you mean 'easycache'"):
        make_pair(pipe, "a fox", "eazycache", seed=0, steps=4)
    with pytest.raises(BadOption, match="unknown option 'treshold'"):
        make_pair(pipe, "a fox", "easycache:treshold=1", seed=0, steps=4)
    assert not pipe.noise


def test_only_plugins_that_work_are_offered() -> None:
    names = working_plugins(TinyPictures())
    assert "easycache" in names
    assert "deepcache" not in names  # it needs a UNet


def test_without_gradio_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r'pip install "skipstep\[app\]"'):
        import_gradio()


@needs_gradio
def test_the_page_has_its_parts_and_analytics_are_off() -> None:
    page = build_app(TinyPictures())
    assert page.analytics_enabled is False
    parts = {type(block).__name__ for block in page.blocks.values()}
    assert {"Textbox", "Dropdown", "Number", "Slider", "ImageSlider", "Button"} <= parts


@needs_gradio
def test_pressing_the_button_makes_two_pictures_and_a_report() -> None:
    page = build_app(TinyPictures())
    (pressed,) = [each for each in page.fns.values() if each.fn and each.fn.__name__ == "run"]
    (plain, accelerated), text = pressed.fn("a fox", "easycache", 0.0, 4.0)
    assert plain.size == accelerated.size == (32, 32)
    assert "easycache" in text
    assert pressed.concurrency_limit == 1


@needs_gradio
def test_a_mistake_is_shown_and_not_a_traceback() -> None:
    import gradio

    page = build_app(TinyPictures())
    (pressed,) = [each for each in page.fns.values() if each.fn and each.fn.__name__ == "run"]
    with pytest.raises(gradio.Error, match="unknown plugin 'nonesuch'"):
        pressed.fn("a fox", "nonesuch", 0.0, 4.0)
