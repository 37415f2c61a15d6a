"""The reference model, loaded once for the tests of the page."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from skipstep.pipelines.batch.rows import Row
from skipstep.pipelines.batch.stopping import Stop
from skipstep.pipelines.reference import load_reference
from skipstep.pipelines.ui.limits import Limits, read_settings
from skipstep.pipelines.ui.studio import REFERENCE, Pair, Studio

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
