"""The page in Chromium: every tab does its work, in both looks, and nobody else's run suffers.

    pytest tests/app -m browser        needs /usr/bin/chromium (or CHROMIUM) and playwright

SCREENSHOTS=docs/app keeps the pictures that docs/app.md shows; runs are longer then.
"""

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skipstep.app import build_app, looks
from skipstep.pipelines.batch.rows import Row
from skipstep.pipelines.batch.stopping import Stop, Stopped
from skipstep.pipelines.ui.album import Album
from skipstep.pipelines.ui.batch_desk import BatchDesk
from skipstep.pipelines.ui.figures import decibels
from skipstep.pipelines.ui.limits import Limits
from skipstep.pipelines.ui.offered import REFERENCE, load_by_name
from skipstep.pipelines.ui.server import import_gradio, launch_settings
from skipstep.pipelines.ui.streams import Tell
from skipstep.pipelines.ui.studio import Pair, Studio
from skipstep.testing import tiny_pipeline

pytestmark = pytest.mark.browser

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
SCREENSHOTS = os.environ.get("SCREENSHOTS")
FLAGS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # WebGL on the processor, for the viewer of splats.
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
]
PATIENCE = int(os.environ.get("PATIENCE", "30000"))
"""Milliseconds without anything new on the page; a run that goes on may take longer."""
ENDLESS = 100
EVERY_OTHER = "fora:interval=2,warmup_steps=1"

Open = Callable[..., Any]


class PatientStudio(Studio):
    """A studio where a run of ENDLESS steps waits at its second one until it is stopped.

    A small picture would otherwise be there before a slow browser has found the button. `stopped`
    counts the runs that were.
    """

    stopped = 0

    def make_pair(
        self, row: Row, model: str, tell: Tell, stop: Stop, *, frames: int | None = None
    ) -> Pair:
        def tell_and_wait(event: Any) -> None:
            tell(event)
            if (row.steps, event.step) == (ENDLESS, 2):
                wait_for(stop.check, "nobody has stopped the run")

        try:
            return super().make_pair(row, model, tell_and_wait, stop, frames=frames)
        except Stopped:
            self.stopped += 1
            raise


@pytest.fixture(scope="module")
def served(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> PatientStudio:
    """Return what the page works with: the reference model, and a tiny one that makes clips."""
    folder = tmp_path_factory.mktemp("models") / "tiny-wan"
    tiny_pipeline("wan").pipe.save_pretrained(folder)
    return PatientStudio(
        (REFERENCE, str(folder)),
        load=lambda name: reference if name == REFERENCE else load_by_name(name),
    )


@pytest.fixture(scope="module")
def url(served: Studio, reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the page; batches run in a thread here, not in a process of their own."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        desk = functools.partial(BatchDesk, load=lambda: reference, workers=0)
        patch.setattr("skipstep.pipelines.ui.batch_desk.BatchDesk", desk)
        page = build_app(served, folder)
    settings = launch_settings(Limits()) | looks(import_gradio(folder))
    _, address, _ = page.launch(**settings, quiet=True, prevent_thread_lock=True)
    yield address
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    assert Path(CHROMIUM).exists(), (
        f"there is no {CHROMIUM}: apt-get install chromium, or say where it is with CHROMIUM=..."
    )
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield made
        made.close()


@pytest.fixture(scope="module")
def open_page(browser: Any, url: str) -> Iterator[Open]:
    """Open the page; nothing may have failed at the end, nor been asked of another host."""
    asked: list[str] = []
    pages: list[Any] = []

    def make(look: str) -> Any:
        page = browser.new_page(viewport={"width": 1360, "height": 1000}, color_scheme=look)
        page.look, page.complaints = look, []
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.on(
            "console",
            lambda message: page.complaints.append(message.text) if message.type == "error" else 0,
        )
        page.goto(url)
        page.wait_for_selector("#generate")
        page.wait_for_selector("text=Options of cache")
        pages.append(page)
        return page

    yield make
    assert not [each for each in asked if not each.startswith((url, "data:", "blob:"))]
    assert not [words for page in pages for words in page.complaints]


@pytest.fixture(scope="module", params=["light", "dark"] if SCREENSHOTS else ["light"])
def page(open_page: Open, request: pytest.FixtureRequest) -> Any:
    """One page for all tests: what a visitor does in one visit."""
    return open_page(request.param)


def keep(page: Any, name: str, look: str) -> None:
    """Keep a screenshot if they are wanted."""
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(1200)
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}-{look}.png", full_page=True)


def go_to(page: Any, tab: str) -> None:
    page.get_by_role("tab", name=tab, exact=True).click()


def choose(page: Any, name: str, option: str) -> None:
    """Choose from a list by the first words."""
    page.locator(f"#{name} input").click()
    page.get_by_role("option", name=option).first.click()


def write(page: Any, label: str, value: object) -> None:
    """Write into the field of that label on the tab that is open, and leave it."""
    field = page.get_by_label(label).locator("visible=true").first
    field.fill(str(value))
    field.press("Tab")


def set_picture(page: Any, **values: object) -> None:
    """Open the settings of the picture and fill them in.

    gradio makes the fields of a closed accordion when it is opened, and on a slow machine makes
    them anew after the first keystrokes: so it is looked at whether what was written stays.
    """
    if not page.get_by_label("Seed").first.is_visible():
        page.get_by_text("Picture", exact=True).first.click()
    labels = {
        "number input for Steps" if name == "steps" else name.capitalize(): str(value)
        for name, value in values.items()
    }

    def is_written() -> bool:
        lost = [
            label
            for label, value in labels.items()
            if page.get_by_label(label).locator("visible=true").first.input_value() != value
        ]
        for label in lost:
            write(page, label, labels[label])
        page.wait_for_timeout(500)
        return not lost

    wait_for(is_written, f"the page does not keep {labels}")


def figures(page: Any, place: str = "figures") -> dict[str, str]:
    """Return the figures under the pictures."""
    names = page.locator(f"#{place} dt").all_inner_texts()
    return dict(zip(names, page.locator(f"#{place} dd").all_inner_texts(), strict=True))


def wait_for(condition: Callable[[], object], otherwise: str) -> None:
    """Wait without a browser."""
    for _ in range(PATIENCE // 50):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(otherwise)


def wait_while_it_goes_on(page: Any, goal: str, status: str) -> None:
    """Wait for a selector as long as the words of a run's status change."""
    from playwright.sync_api import TimeoutError

    words = None
    while page.locator(goal).count() == 0:
        last, words = words, page.locator(status).inner_text()
        told = page.locator(".toast-body").all_inner_texts()
        assert words != last, f"no {goal} after {PATIENCE / 1000:g} s: {words!r}, {told}"
        with contextlib.suppress(TimeoutError):
            page.wait_for_selector(goal, state="attached")


def test_generate_shows_a_pair_and_says_what_was_skipped(page: Any) -> None:
    page.locator("#generate").click()
    page.wait_for_selector("#live img")
    page.wait_for_selector("text=Accelerated picture: step")
    keep(page, "live", page.look)
    page.wait_for_selector("#pair img", state="visible")
    assert page.locator("#timeline .steps i").count() == 20
    label = page.locator("#timeline .steps").get_attribute("aria-label")
    assert label == "20 steps: 10 computed, 10 skipped"
    assert "Skipped 20 of 40" in page.locator("#verdict").inner_text()
    names = ["speed-up", "time", "computed", "memory", "PSNR", "SSIM", "LPe"]
    assert list(figures(page)) == names
    keep(page, "create", page.look)


def test_the_page_follows_the_look_of_the_system(open_page: Open) -> None:
    page = open_page("dark")
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == "rgb(19, 20, 24)"
    page.close()


def test_stop_ends_the_run(page: Any, served: PatientStudio) -> None:
    choose(page, "preset", "balanced")
    page.wait_for_selector("text=Options of abcache")
    set_picture(page, seed=11, size=64, steps=ENDLESS)
    assert page.locator("#preset input").input_value().startswith("balanced")
    before = served.stopped
    page.locator("#generate").click()
    wait_while_it_goes_on(page, "#live >> text=Plain picture: step", "#live")
    page.locator("#stop").click()
    page.wait_for_selector("text=Stopped. Nothing is running")
    wait_for(lambda: not served.lock.locked(), "the run goes on")
    assert served.stopped == before + 1
    assert page.locator("#generate").is_enabled() and page.locator("#stop").is_disabled()


def test_a_tab_that_is_closed_stops_its_run_and_the_next_picture_is_right(
    open_page: Open, page: Any, served: PatientStudio, make_row: Callable[..., Any]
) -> None:
    other = open_page("light")
    for each, steps in ((other, ENDLESS), (page, 6)):
        write(each, "Recipe", EVERY_OTHER)
        each.wait_for_selector("text=Options of fora")
        set_picture(each, seed=5, size=64, steps=steps)
    before = served.stopped
    other.locator("#generate").click()
    wait_while_it_goes_on(other, "#live >> text=Plain picture: step", "#live")
    other.close()
    page.locator("#generate").click()
    page.wait_for_selector("#pair img", state="visible")
    assert served.stopped == before + 1
    prompt = page.locator("#prompt textarea").input_value()
    row = make_row(prompt=prompt, seed=5, steps=6, plugins=EVERY_OTHER)
    alone = Studio(load=lambda name: served.pipe)
    expected = alone.make_pair(row, REFERENCE, lambda event: None, Stop())
    assert figures(page)["PSNR"] == decibels(expected.psnr)
    assert figures(page)["LPe"] == f"{expected.feature_distance:.3f}"


def test_a_png_puts_its_settings_back(
    page: Any, reference: Any, make_pair: Callable[..., Pair], tmp_path: Path
) -> None:
    pair = make_pair(prompt="a sun", seed=77, plugins=EVERY_OTHER, guidance=2.5)
    _, file = Album(tmp_path).put(pair, reference)
    page.locator("#reload input[type=file]").set_input_files(file)
    page.wait_for_function("document.querySelector('#prompt textarea').value == 'a sun'")
    assert page.locator("#recipe textarea").input_value() == EVERY_OTHER
    assert page.locator("#seed input").input_value() == "77"
    assert page.get_by_label("Guidance").first.input_value() == "2.5"
    page.wait_for_selector("text=Options of fora")


def test_the_page_works_with_the_keyboard_alone(page: Any) -> None:
    set_picture(page, steps=ENDLESS)
    page.get_by_role("tab", name="Create").focus()
    for place in ("video", "compare", "sweep", "autotune", "3d", "batch", "plugins"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.dataset.tabId") == place
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#prompt') !== null")
    page.keyboard.press("Control+A")
    page.keyboard.type("a sun and a moon")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "generate"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    wait_while_it_goes_on(page, "#live >> text=Plain picture: step", "#live")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "stop"
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Stopped. Nothing is running")


def test_a_control_writes_the_recipe(page: Any) -> None:
    choose(page, "preset", "balanced")
    page.get_by_text("Options of abcache").click()
    page.locator("#option-abcache-max_skips textarea").fill("2")
    page.locator("#option-abcache-max_skips textarea").press("Tab")
    page.wait_for_function(
        "document.querySelector('#recipe textarea').value == 'abcache:max_skips=2,interval=2'"
    )
    page.wait_for_function("document.querySelector('#preset input').value == 'my own'")


def test_a_mistake_leaves_every_field_in_reach(page: Any) -> None:
    page.locator("#recipe textarea").fill("easycash")
    page.locator("#generate").click()
    page.get_by_text("did you mean 'easycache'").first.wait_for()
    assert page.locator("#recipe textarea").is_visible() and page.locator("#generate").is_enabled()
    page.locator("#recipe textarea").fill("easycache")
    set_picture(page, size=63, steps=4)
    page.locator("#generate").click()
    page.get_by_text("It failed, and the message says why").wait_for()
    assert page.locator("#generate").is_enabled() and page.locator("#recipe textarea").is_visible()
    # gradio answers what is wrong with status 500, which the browser tells its console.
    assert all("status of 500" in words for words in page.complaints)
    page.complaints.clear()


def test_a_forged_file_is_refused_in_our_words(page: Any) -> None:
    answer = page.evaluate(
        """async () => {
          const call = "gradio_api/call/read_picture";
          const body = JSON.stringify({ data: [{ path: "/etc/passwd" }] });
          const headers = { "content-type": "application/json" };
          const begun = await (await fetch(call, { method: "POST", headers, body })).json();
          return await (await fetch(`${call}/${begun.event_id}`)).text();
        }"""
    )
    assert "event: error" in answer and "this is no uploaded file: upload it first" in answer


def test_compare(page: Any) -> None:
    go_to(page, "Compare")
    page.locator("#compare-prompts textarea").fill("strawberry, 3d style")
    page.locator("#compare-recipes textarea").fill(EVERY_OTHER)
    if SCREENSHOTS:
        recipes = "abcache:interval=2\neasycache:threshold=0.1"
        page.locator("#compare-recipes textarea").fill(recipes)
    write(page, "number input for Steps", 12 if SCREENSHOTS else 4)
    page.locator("#compare").click()
    inside = page.frame_locator("#comparison iframe")
    wait_while_it_goes_on(page, "#comparison iframe", "#compare-status")
    inside.get_by_text("All numbers").wait_for()
    frame = page.locator("#comparison iframe")
    assert frame.get_attribute("sandbox") == "allow-scripts"
    page.wait_for_function("document.querySelector('#comparison iframe').style.height != ''")
    assert page.locator("#compare-stop").is_disabled()
    page.set_viewport_size({"width": 1360, "height": 2600})
    keep(page, "compare", page.look)
    page.set_viewport_size({"width": 1360, "height": 1000})


def test_sweep(page: Any) -> None:
    go_to(page, "Sweep")
    if not SCREENSHOTS:
        choose(page, "sweep-plugin", "fora")
        choose(page, "sweep-option", "interval")
        write(page, "Values", "1, 2")
    write(page, "number input for Steps", 12 if SCREENSHOTS else 4)
    page.locator("#sweep").click()
    wait_while_it_goes_on(page, "#sweep-chart circle", "#sweep-status")
    wait_while_it_goes_on(page, "#sweep-status:not(:has(.bar))", "#sweep-status")
    count = page.locator("#sweep-sheet figure").count()
    assert count >= 5 and page.locator("#sweep-chart circle").count() == count
    keep(page, "sweep", page.look)


def test_autotune_and_use_what_was_found(page: Any) -> None:
    go_to(page, "Autotune")
    write(page, "number input for Steps", 12 if SCREENSHOTS else 6)
    write(page, "number input for Trials", 5 if SCREENSHOTS else 3)
    write(page, "Prompts to tune on", "a sun\na pizza")
    page.locator("#tune").click()
    wait_while_it_goes_on(page, "#tune-summary table", "#tune-status")
    assert page.locator("#tune-chart circle").count() >= 1
    keep(page, "autotune", page.look)
    recipe = page.locator("#tune-recipe textarea").input_value()
    assert recipe
    page.locator("#tune-use").click()
    go_to(page, "Create")
    # The entries of a schedule's fingerprint come in another order.
    same = (
        "recipe => [...document.querySelector('#recipe textarea').value].sort().join('') == recipe"
    )
    page.wait_for_function(same, arg="".join(sorted(recipe)))


def test_photographs_become_splats_in_a_viewer(page: Any) -> None:
    go_to(page, "3D")
    page.locator("#splat-example").click()
    page.wait_for_function("document.querySelectorAll('#photos img').length == 4")
    write(page, "number input for Refinement", 50 if SCREENSHOTS else 10)
    page.locator("#splat").click()
    wait_while_it_goes_on(page, "#scene iframe", "#splat-status")
    viewer = page.frame_locator("#scene iframe")
    viewer.locator("body[data-splats] canvas").wait_for()
    count = figures(page, "splat-figures")["Gaussians"]
    assert int(viewer.locator("body").get_attribute("data-splats")) == int(count.replace(",", ""))
    assert page.locator("#scene img").get_attribute("alt").startswith(count)
    names = page.locator("#splat-files .filename").all_inner_texts()
    assert [name.split(".")[-1].strip() for name in names] == [
        "ply",
        "splat",
        "spz",
        "html",
        "webp",
    ]
    if SCREENSHOTS:
        page.wait_for_timeout(8000)
    keep(page, "splats", page.look)


def test_a_prompt_becomes_splats(page: Any) -> None:
    go_to(page, "3D")
    before = page.locator("#scene iframe").get_attribute("srcdoc")
    page.get_by_label("a prompt").check()
    page.locator("#splat-prompt textarea").fill("pizza, 3d style")
    assert not page.locator("#splat-example").is_visible()
    if not SCREENSHOTS:
        write(page, "number input for Steps", 4)
    page.locator("#splat").click()
    wait_while_it_goes_on(page, "#scene img[alt='what the model drew']", "#splat-status")
    assert page.locator("#scene iframe").get_attribute("srcdoc") != before
    assert list(figures(page, "splat-figures")) == ["Gaussians", "draw", "lift"]
    if SCREENSHOTS:
        page.wait_for_timeout(8000)
    keep(page, "text-to-splats", page.look)


def test_clips_are_shown_side_by_side(page: Any) -> None:
    go_to(page, "Video")
    page.wait_for_selector("text=Options of abcache")
    page.get_by_text("Clip", exact=True).click()
    write(page, "number input for Steps", 8)
    write(page, "Frames", 5)
    write(page, "Size", 32)
    page.locator("#video-generate").click()
    wait_while_it_goes_on(page, "#video-verdict .verdict", "#video-live")
    clips = page.locator("#video-live img")
    assert [clips.nth(i).get_attribute("alt") for i in (0, 1)] == ["plain clip", "accelerated clip"]
    assert page.locator("#video-timeline .steps i").count() == 8
    assert page.locator("#video-files .filename").count() == 2


def test_a_batch_runs_to_its_end(page: Any, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    things = ("hamburger", "ghost", "strawberry") if SCREENSHOTS else ("ghost",)
    prompts = [{"prompt": f"{thing}, flat style"} for thing in things]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*prompts, {"promt": "typo"}]))
    go_to(page, "Create")
    page.locator("#recipe textarea").fill("abcache:interval=2")
    page.locator("#recipe textarea").press("Tab")
    go_to(page, "Batch")
    page.locator("#batch-file input[type=file]").set_input_files(file)
    page.wait_for_selector("#batch-file .filename")
    if not SCREENSHOTS:
        write(page, "number input for Steps", 2)
    page.locator("#batch").click()
    done, total = len(prompts), len(prompts) + 1
    page.wait_for_selector(f"text={done} of {total} pictures are made")
    page.wait_for_function(
        "n => document.querySelectorAll('#batch-pictures img').length == n", arg=done
    )
    assert page.locator("#batch").is_enabled() and page.locator("#batch-stop").is_disabled()
    keep(page, "batch", page.look)


def test_plugins_are_listed_with_their_options(page: Any) -> None:
    go_to(page, "Plugins")
    assert page.locator("#plugin-table tbody tr").count() > 40
    choose(page, "plugin-choice", "taylorseer")
    page.wait_for_selector("#plugin-options >> text=interval")
    keep(page, "plugins", page.look)
