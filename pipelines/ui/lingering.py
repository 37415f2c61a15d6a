"""Keep the page's stream of answers open for a moment after the last one.

gradio's server closes the stream of a session as soon as none of its events is left. An event that
is sent while that word is on its way finds the page's end still open, and what it answers is never
heard: the run goes on, the page shows nothing. Leaving a field by clicking on Generate is enough.
So the stream lingers, and is closed when nothing was sent for a while; an open one for as long as
the page is there would take one of the six connections that a browser makes to a server.

The sets of pending events are where gradio looks; a session's set tells it here that it is empty
when the moment is over. Clients other than the page are served as ever: their sessions are UUIDs,
while the page names its own by the digits of a random number in base 36.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

__all__ = ["linger"]

SECONDS = 5.0
LONGEST_PAGE_HASH = 13


class Pending(set[str]):
    """The events of one page that are not answered yet; its length is 0 when the stream may end."""

    def __init__(self, queue: Any, session: str, events: Iterable[str] = ()) -> None:
        super().__init__(events)
        self.queue = queue
        self.session = session
        self.may_end = False
        self.timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return super().__len__() or (0 if self.may_end else 1)

    def __bool__(self) -> bool:
        return super().__len__() > 0

    def add(self, event: str) -> None:
        """Note an event, which keeps the stream open."""
        self.may_end = False
        if self.timer is not None:
            self.timer.cancel()
        super().add(event)

    def remove(self, event: str) -> None:
        """Take an event that is answered; after the last one the moment begins."""
        super().remove(event)
        if not self:
            self.timer = asyncio.get_running_loop().call_later(SECONDS, self.end)

    def end(self) -> None:
        """Let gradio look again: it does so after an answer, so it is given an empty one."""
        from gradio.server_messages import ProcessCompletedMessage

        messages = self.queue.pending_messages_per_session.get(self.session)
        if messages is not None:
            self.may_end = True
            messages.put_nowait(
                ProcessCompletedMessage(output={}, success=True, event_id="nothing more")
            )


class Sessions(dict[str, set[str]]):
    """The pending events by session; those of pages linger."""

    def __init__(self, queue: Any) -> None:
        super().__init__(queue.pending_event_ids_session)
        self.queue = queue

    def __setitem__(self, session: str, events: set[str]) -> None:
        if len(session) <= LONGEST_PAGE_HASH and not isinstance(events, Pending):
            events = Pending(self.queue, session, events)
        super().__setitem__(session, events)


def linger(ui: Any) -> None:
    """Let the streams of a page's visitors linger; call it when its queue is there."""
    ui._queue.pending_event_ids_session = Sessions(ui._queue)
