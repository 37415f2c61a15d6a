"""Nonsense for every endpoint and event of the page: words come back, and no other file is opened.

python -m benchmarks.app fuzz --rounds 30        the same for longer
"""

from pathlib import Path
from typing import Any

import pytest

from skipstep.benchmarks.app import Fuzzer, Opened, call, kind_of, picture, serving


@pytest.mark.usefixtures("as_users_see_it")
def test_nonsense_is_answered_in_words_and_opens_nothing(tmp_path: Path) -> None:
    secret = tmp_path / "outside" / "schedule.json"
    secret.parent.mkdir()
    secret.write_text('{"version": 1, "kind": "skipstep-schedule", "steps": 2, "compute": [0]}')
    folder = (tmp_path / "served").resolve()
    opened = Opened(folder)
    small: dict[str, Any] = {"pixels": 64 * 64, "steps": 6, "calls": 2, "batch_rows": 4}
    with serving(folder, **small, refine_steps=4, minutes=0.1) as (page, url):
        fuzzer = Fuzzer(page, url, secret)
        with opened.watching():
            fuzzer.round()
        answer = call(fuzzer.client, url, "generate", picture(0))
    assert not fuzzer.faults
    handlers = [each for each in page.fns.values() if each.fn is not None]
    assert fuzzer.sent == len(handlers) and kind_of(answer) == "answered"
    assert not opened.written and not opened.read
