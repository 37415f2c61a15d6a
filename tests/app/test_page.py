"""The page as it is served: what it is built from, its endpoints, and what a stranger can do."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from skipstep.pipelines.pictures import read_metadata
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.ui.sculpting import draw_example
from skipstep.pipelines.ui.server import queue_settings

ENDPOINTS = {
    "/generate",
    "/clip",
    "/splats",
    "/splats_from_text",
    "/compare",
    "/sweep",
    "/autotune",
    "/batch_start",
    "/batch_status",
    "/batch_stop",
    "/batch_resume",
    "/models",
    "/plugins",
    "/plugin_schema",
    "/read_picture",
}
QUICK: dict[str, Any] = {"size": "64", "steps": 4, "seed": 3}
EVERY_OTHER = "fora:interval=2,warmup_steps=1"


def test_it_has_its_tabs_and_sends_no_statistics(page: Any) -> None:
    assert page.analytics_enabled is False
    tabs = [each.label for each in page.blocks.values() if type(each).__name__ == "Tab"]
    assert tabs == ["Create", "Compare", "Sweep", "Autotune", "3D", "Batch", "Plugins"]


def test_every_field_has_a_label(page: Any) -> None:
    fields = {"Textbox", "Dropdown", "Number", "Slider", "Checkbox", "File", "Gallery", "Code"}
    found = [each for each in page.blocks.values() if type(each).__name__ in fields]
    assert len(found) > 20 and all(each.label for each in found)


def test_only_the_named_endpoints_are_public(client: Client) -> None:
    described = client.view_api(return_format="dict", print_info=False)
    assert set(described["named_endpoints"]) == ENDPOINTS
    assert not described["unnamed_endpoints"]


def test_events_that_run_the_model_wait_in_one_line(page: Any) -> None:
    names = {"run", "generate", "clip", "splats", "splats_from_text"}
    names |= {"compare", "sweep", "autotune"}
    long = [each for each in page.fns.values() if each.fn and each.fn.__name__ in names]
    assert len(long) == 12
    assert {each.concurrency_id for each in long} == {"model"}
    assert {each.concurrency_limit for each in long} == {1}


def test_events_that_change_the_controls_shown_go_through_the_queue(page: Any) -> None:
    (render,) = [each for each in page.fns.values() if each.renderable is not None]
    (chosen,) = render.inputs
    setters = [each for each in page.fns.values() if chosen in each.outputs]
    assert len(setters) == 7 and all(each.queue for each in setters)


def test_generate_answers_with_files_that_know_how_they_were_made(client: Client) -> None:
    job = client.submit("pizza, 3d style", EVERY_OTHER, **QUICK, api_name="/generate")
    found = job.result()
    assert found["state"] == "done" and found["timeline"] == [1.0, 0.0, 1.0, 0.0]
    assert found["recipe"] == EVERY_OTHER and found["psnr"] > 0 and "Skipped" in found["verdict"]
    told = json.loads(read_metadata(Path(found["accelerated"])))
    assert told["seed"] == 3 and told["prompt"] == "pizza, 3d style"
    states = {each["state"] for each in job.outputs()}
    assert {"plain", "accelerated"} <= states
    settings = client.predict(handle_file(found["accelerated"]), api_name="/read_picture")
    assert settings["recipe"] == EVERY_OTHER and settings["size"] == "64x64"


def test_a_cancelled_request_ends_and_the_next_picture_is_right(client: Client) -> None:
    expected = client.predict("a sun", EVERY_OTHER, **QUICK, api_name="/generate")["psnr"]
    job = client.submit("a sun", EVERY_OTHER, **QUICK | {"steps": 100}, api_name="/generate")
    for answer in job:
        if answer["step"] >= 2:
            job.cancel()
            break
    again = client.predict("a sun", EVERY_OTHER, **QUICK, api_name="/generate")
    assert again["psnr"] == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["", ""], "prompt is empty"),
        (["a sun", "nonesuch"], "unknown plugin 'nonesuch'"),
        (["a sun", "easycache:treshold=1"], "did you mean 'threshold'"),
        (["a sun", "", 0, 20, "9000x9000"], "is not allowed"),
        (["<img src=x onerror=alert(1)>" * 200], "at most 4000"),
        (["a sun", "", "<b>seed</b>"], "&lt;b&gt;seed&lt;/b&gt;"),
        (["a sun", "", 0, 20, "", None, "", "/etc"], "model '/etc' is not offered here"),
    ],
)
def test_mistakes_are_answered_in_words(
    as_users_see_it: None, client: Client, given: list[Any], words: str
) -> None:
    with pytest.raises(AppError, match=re.escape(words)):
        client.predict(*given, api_name="/generate")


def test_photographs_become_files_and_other_files_are_refused(
    client: Client, ask: Callable[..., str], tmp_path: Path
) -> None:
    photos = [handle_file(path) for path in draw_example(0, tmp_path)]
    found = client.predict(photos, "white", 3, api_name="/splats")
    assert found["gaussians"] > 100 and set(found["seconds"]) == {"reconstruct", "refine"}
    endings = [Path(path).suffix for path in found["files"]]
    assert endings == [".ply", ".splat", ".spz", ".html", ".webp"]
    assert len(Gaussians.load(found["files"][0])) == found["gaussians"]
    forged = ask("splats", [{"path": "/etc/passwd"}, {"path": "/etc/hostname"}], "white", 0)
    assert "event: error" in forged and "this is no uploaded file" in forged
    short = ask("splats", [])
    assert "event: error" in short and "give as many values as are taken here" in short


def test_a_prompt_becomes_splats_and_its_drawing(client: Client) -> None:
    found = client.predict("pizza, 3d style", 3, 4, api_name="/splats_from_text")
    assert found["gaussians"] > 100 and set(found["seconds"]) == {"draw", "lift"}
    endings = [Path(path).suffix for path in found["files"]]
    assert endings == [".ply", ".splat", ".spz", ".html", ".webp", ".png"]
    assert len(Gaussians.load(found["files"][0])) == found["gaussians"]
    with pytest.raises(AppError, match="steps=101 is not allowed here: 1 to 100"):
        client.predict("a sun", 0, 101, api_name="/splats_from_text")
    with pytest.raises(AppError, match="'/etc' is not offered here"):
        client.predict("a sun", 0, 4, "/etc", api_name="/splats_from_text")


def test_the_pages_example_of_a_client_runs(url: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "app.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("http://127.0.0.1:7860", url), names)
    assert names["found"]["state"] == "done" and names["settings"]["seed"] == 7


def test_every_case_on_the_page_names_a_test() -> None:
    page = (Path(__file__).parents[2] / "docs" / "app.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    files = Path(__file__).parent.glob("test_*.py")
    known = {
        name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert len(named) > 20 and named <= known


def test_a_full_line_says_so(
    url: str, page: Any, ask: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert queue_settings()["max_size"] == page._queue.max_size == 32
    with monkeypatch.context() as patch:
        patch.setattr(page._queue, "max_size", 0)
        answer = ask("generate", "a sun", "", 0, 2, "64", None, "", "reference")
    assert answer.startswith("503") and "full" in answer
    assert "reference" in ask("models")


def test_the_lists(client: Client) -> None:
    assert client.predict(api_name="/models") == {"models": ["reference"], "any_model": False}
    rows = client.predict(api_name="/plugins")["rows"]
    assert {row["name"]: row["why_not"] for row in rows}["easycache"] is None
    assert "threshold" in client.predict("easycache", api_name="/plugin_schema")["properties"]


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../" * 9 + "etc/passwd", "nowhere", "a\x00b", "", 7, __file__]
)
def test_only_uploads_are_read(as_users_see_it: None, ask: Callable[..., str], path: Any) -> None:
    plain = ask("read_picture", {"path": path})
    assert "event: error" in plain and "upload" in plain
    as_file = ask("read_picture", {"path": path, "meta": {"_type": "gradio.FileData"}})
    assert as_file.startswith(("event: error", "4")) and "root:" not in as_file
    assert "upload" in as_file or as_file.startswith("4")


def test_files_of_this_machine_are_not_served(url: str) -> None:
    for path in ("/etc/passwd", str(Path(__file__)), "app.py", "../../etc/passwd"):
        for place in ("gradio_api/file=", "file=", "gradio_api/proxy=http://127.0.0.1/"):
            answer = httpx.get(f"{url}{place}{path}")
            assert answer.status_code in (400, 403, 404), (place, path)


def test_requests_under_another_name_are_refused(url: str) -> None:
    answer = httpx.get(url, headers={"host": "evil.example"})
    assert answer.status_code == 421
    whole = httpx.get(url)
    assert (
        whole.status_code == 200 and "frame-ancestors" in whole.headers["content-security-policy"]
    )
    assert httpx.get(f"{url}monitoring").status_code in (403, 404)


def test_an_upload_that_is_too_large_is_refused(
    url: str, page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "max_file_size", 1000)
    answer = httpx.post(f"{url}gradio_api/upload", files={"files": ("a.png", b"0" * 5000)})
    assert answer.status_code == 413


def test_nothing_is_written_outside_the_folder(client: Client, folder: Path) -> None:
    before = set(folder.rglob("*"))
    client.predict("../../../tmp/evil", "", **QUICK, api_name="/generate")
    names = [path.name for path in set(folder.rglob("*")) - before]
    assert len(names) == 2 and all(re.fullmatch(r"[0-9a-f]{16}\.png", name) for name in names)
