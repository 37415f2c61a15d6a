"""The reference model and the page that serves it, once for all tests of the page."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from skipstep.app import build_app
from skipstep.pipelines.batch.rows import Row
from skipstep.pipelines.batch.stopping import Stop
from skipstep.pipelines.reference import load_reference
from skipstep.pipelines.ui.limits import Limits, read_settings
from skipstep.pipelines.ui.offered import REFERENCE
from skipstep.pipelines.ui.server import launch_settings
from skipstep.pipelines.ui.studio import Pair, Studio

MakeRow = Callable[..., Row]


@pytest.fixture(scope="session")
def reference() -> Any:
    return load_reference()


@pytest.fixture
def studio(reference: Any) -> Iterator[Studio]:
    """A studio with the reference model; nothing may stay switched on afterwards."""
    yield Studio(load=lambda name: reference)
    assert not [row.name for row in reference.list_plugins().rows if row.is_active]


@pytest.fixture
def make_row() -> MakeRow:
    """Settings of a small, quick picture."""

    def make(**given: Any) -> Row:
        fields = {"prompt": "pizza, 3d style", "steps": 4, "seed": 3, "size": "64"} | given
        return read_settings(fields, Limits())

    return make


@pytest.fixture
def make_pair(studio: Studio, make_row: MakeRow) -> Callable[..., Pair]:
    """Make a pair, deaf to its progress."""

    def make(**given: Any) -> Pair:
        return studio.make_pair(make_row(**given), REFERENCE, lambda event: None, Stop())

    return make


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="session")
def page(reference: Any, folder: Path) -> Any:
    return build_app(Studio(load=lambda name: reference), folder)


@pytest.fixture(scope="session")
def url(page: Any) -> Iterator[str]:
    settings = launch_settings(Limits())
    _, address, _ = page.launch(**settings, quiet=True, prevent_thread_lock=True)
    yield address
    page.close()


@pytest.fixture(scope="session")
def client(url: str) -> Any:
    from gradio_client import Client

    return Client(url, verbose=False)


@pytest.fixture(scope="session")
def ask(url: str) -> Callable[..., str]:
    """Call an endpoint by plain HTTP, as a stranger would; return the last event and its data."""

    def call(endpoint: str, *given: Any) -> str:
        address = f"{url}gradio_api/call/{endpoint}"
        # json.dumps writes NaN and infinity, which httpx would refuse to send.
        content = json.dumps({"data": list(given)})
        headers = {"content-type": "application/json"}
        begun = httpx.post(address, content=content, headers=headers, timeout=None)
        if begun.status_code != 200:
            return f"{begun.status_code} {begun.text}"
        event = begun.json()["event_id"]
        return httpx.get(f"{address}/{event}", timeout=None).text.strip().split("\n\n")[-1]

    return call
