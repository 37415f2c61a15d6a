"""The page in Chromium: generate in both looks, and stop.

    pytest tests/app -m browser        needs /usr/bin/chromium (or CHROMIUM) and playwright

SCREENSHOTS=docs/app keeps the pictures that docs/app.md shows.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.browser

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 180_000
"""Milliseconds: a shared machine can be slow, and nothing here is about time."""

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the page in a process of its own, as its users do."""
    folder = tmp_path_factory.mktemp("served")
    log = (folder / "log").open("w+")
    port = "7899"
    command = [sys.executable, "-m", "skipstep.app", "--port", port, "--folder", str(folder)]
    server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(600):
            assert server.poll() is None, (folder / "log").read_text()
            try:
                httpx.get(address)
                break
            except httpx.TransportError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


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


@pytest.fixture
def open_page(browser: Any, url: str) -> Iterator[Open]:
    """Open the page; nothing may have failed then, nor been asked of another host."""
    asked: list[str] = []
    complaints: list[str] = []
    pages: list[Any] = []

    def hear(message: Any) -> None:
        if message.type == "error":
            complaints.append(message.text)

    def make(**how: Any) -> Any:
        page = browser.new_page(viewport={"width": 1360, "height": 1000}, **how)
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", hear)
        page.goto(url)
        page.wait_for_selector("#generate")
        page.wait_for_selector("text=Options of cache")
        pages.append(page)
        return page

    yield make
    for page in pages:
        page.close()
    assert not [each for each in asked if not each.startswith((url, "data:", "blob:"))]
    assert not complaints


def keep(page: Any, name: str) -> None:
    """Keep a screenshot if they are wanted."""
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(1200)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def choose_preset(page: Any, name: str) -> None:
    """Choose a preset by its first word."""
    page.locator("#preset input").click()
    page.get_by_role("option", name=name).click()


def set_number(page: Any, label: str, value: str) -> None:
    """Open the settings of the picture and write a number."""
    if not page.get_by_label(label).first.is_visible():
        page.get_by_text("Picture", exact=True).first.click()
    page.get_by_label(label).first.fill(value)
    page.get_by_label(label).first.press("Tab")


def generate(page: Any) -> None:
    """Press the button and wait for the pair."""
    page.locator("#generate").click()
    page.wait_for_selector("#pair img", state="visible")


@pytest.mark.parametrize("look", ["light", "dark"])
def test_generate_shows_a_pair_and_says_what_was_skipped(open_page: Open, look: str) -> None:
    page = open_page(color_scheme=look)
    keep(page, f"first-{look}")
    page.locator("#generate").click()
    page.wait_for_selector("#live img")
    page.wait_for_selector("text=Accelerated picture: step")
    keep(page, f"live-{look}")
    page.wait_for_selector("#pair img", state="visible")
    assert page.locator("#timeline .steps i").count() == 20
    label = page.locator("#timeline .steps").get_attribute("aria-label")
    assert label == "20 steps: 10 computed, 10 skipped"
    assert "Skipped 20 of 40" in page.locator("#verdict").inner_text()
    assert page.locator("#figures dt").all_inner_texts() == [
        "speed-up",
        "time",
        "computed",
        "memory",
        "PSNR",
        "SSIM",
        "LPe",
    ]
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == {"light": "rgb(247, 246, 243)", "dark": "rgb(19, 20, 24)"}[look]
    keep(page, f"create-{look}")


def test_stop_ends_the_run(open_page: Open) -> None:
    page = open_page()
    choose_preset(page, "balanced")
    set_number(page, "Seed", "11")
    page.locator("#generate").click()
    page.wait_for_selector("text=Plain picture: step")
    page.locator("#stop").click()
    page.wait_for_selector("text=Stopped. Nothing is running")
    assert page.locator("#generate").is_enabled()
    generate(page)
