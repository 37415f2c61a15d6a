"""Work in a thread: what it tells arrives, and who stops listening stops it."""

import threading

import pytest

from skipstep.pipelines.batch.stopping import Stop
from skipstep.pipelines.ui.streams import Tell, Waiting, stream


def test_what_is_told_arrives_in_order() -> None:
    def work(tell: Tell, stop: Stop) -> None:
        for number in range(5):
            tell(number)

    assert [event for event in stream(work) if not isinstance(event, Waiting)] == [0, 1, 2, 3, 4]


def test_an_error_is_raised_where_it_is_heard() -> None:
    def work(tell: Tell, stop: Stop) -> None:
        tell("before")
        raise KeyError("inside")

    events = stream(work)
    assert next(events) == "before"
    with pytest.raises(KeyError, match="inside"):
        next(events)


def test_closing_the_stream_ends_the_work_before_it_returns() -> None:
    ended = threading.Event()

    def work(tell: Tell, stop: Stop) -> None:
        try:
            tell("begun")
            while True:
                stop.check()
        finally:
            ended.set()

    events = stream(work)
    assert next(events) == "begun"
    events.close()
    assert ended.is_set()


def test_a_silent_stream_can_still_be_closed() -> None:
    go = threading.Event()

    def work(tell: Tell, stop: Stop) -> None:
        go.wait()
        stop.check()

    events = stream(work, pulse=0.01)
    assert isinstance(next(events), Waiting)
    go.set()
    events.close()
