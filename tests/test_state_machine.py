"""Random sequences of actions end in a pipeline that looks and paints as if never touched.

A few sequences here; `python -m benchmarks.state_machine --sequences 1000` runs a thousand.
"""

from typing import Any
from weakref import WeakKeyDictionary

import pytest

from skipstep.benchmarks.state_machine import MACHINES, run_sequences
from skipstep.plugins.plugin_site import Site
from skipstep.plugins.run import Run


@pytest.mark.parametrize("family", MACHINES)
def test_random_sequences_leave_no_trace(family: str) -> None:
    run_sequences(family, sequences=6, actions=8, start=7)


@pytest.mark.slow
@pytest.mark.parametrize("family", MACHINES)
def test_many_random_sequences_leave_no_trace(family: str) -> None:
    run_sequences(family, sequences=100, actions=10, start=8)


def test_a_seam_that_stays_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Site, "undo", lambda self: None)
    with pytest.raises(AssertionError, match="not the picture of a fresh pipeline|as if never"):
        run_sequences("pixart", sequences=20, actions=8, shrink=False)


class Sticky(dict[Any, Any]):
    """What a run remembers, if nobody clears it."""

    def clear(self) -> None:
        """Keep everything."""


@pytest.mark.slow
def test_state_that_outlives_a_run_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: WeakKeyDictionary[Any, Sticky] = WeakKeyDictionary()
    original = Run.__init__

    def remembers(self: Run, owner: Any, pipe: Any, arguments: dict[str, Any]) -> None:
        original(self, owner, pipe, arguments)
        self.state = kept.setdefault(owner, Sticky())

    monkeypatch.setattr(Run, "__init__", remembers)
    with pytest.raises((AssertionError, ValueError)):
        run_sequences("pixart", sequences=100, actions=8, shrink=False)
