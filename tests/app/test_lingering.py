"""The page's stream of answers outlives an answer for a moment; that of other clients does not."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest


@contextmanager
def listening(url: str, session: str) -> Iterator[Iterator[str]]:
    """Yield what a session is told, message by message."""
    address = f"{url}gradio_api/queue/data"
    with httpx.stream("GET", address, params={"session_hash": session}, timeout=60) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data:"))
        yield (json.loads(line.removeprefix("data:"))["msg"] for line in lines)


def choose_a_preset(page: Any, url: str, session: str) -> None:
    """Send an event as the page does, one that is answered at once."""
    (number,) = {
        number
        for number, each in page.fns.items()
        if getattr(each.fn, "__name__", "") == "choose_preset"
    }
    event = {"data": ["my own", None], "fn_index": number, "session_hash": session}
    assert httpx.post(f"{url}gradio_api/queue/join", json=event, timeout=60).status_code == 200


def test_what_is_sent_as_the_last_answer_comes_is_heard_on_the_same_stream(
    page: Any, url: str
) -> None:
    session = "4fzyo82mvyr"
    choose_a_preset(page, url, session)
    with listening(url, session) as told:
        assert "process_completed" in told
        choose_a_preset(page, url, session)
        assert "process_completed" in told


def test_the_stream_ends_when_nothing_was_sent_for_a_while(
    page: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skipstep.pipelines.ui.lingering.SECONDS", 0.1)
    choose_a_preset(page, url, "9c5x1p0q7tk")
    with listening(url, "9c5x1p0q7tk") as told:
        assert list(told)[-1] == "close_stream"


def test_the_stream_of_another_client_ends_with_its_last_answer(page: Any, url: str) -> None:
    session = str(uuid.uuid4())
    choose_a_preset(page, url, session)
    with listening(url, session) as told:
        assert list(told)[-2:] == ["process_completed", "close_stream"]
