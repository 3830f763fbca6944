"""Long-poll: one page of what is new, or a wait for it (PROTOCOL.md §7).

Rules of this file
1. The same cursors, records, gaps and ends as everywhere: a poll is a short subscription whose sink is the page.
2. The answer's cursor names exactly what the page holds: what was published between two polls is in the next one.
3. There is something: answer when the streams have been read to their ends or the page is full. There is nothing:
   wait. The first call, which has no cursor yet, never waits: a cut would lose where it began.
4. A client that leaves frees everything at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from tailrace.codes import CloseCode
from tailrace.core import frames
from tailrace.core.cursor import Resume, Special, format_cursor
from tailrace.core.event import Ended, Gap, Record
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.errors import LogUnavailable
from tailrace.hub.block import Block, SinkClosed
from tailrace.hub.hub import Hub
from tailrace.hub.subscription import Subscription

__all__ = ["PollAnswer", "PollOptions", "poll"]

Guard: TypeAlias = Callable[[], Awaitable[CloseCode]]

SETTLE_SECONDS = 5.0
"""How long a poll that must not wait for news may wait for the log."""
GLANCE_SECONDS = 0.05
"""A lane that joins the live set without having been given anything tells nobody; look again after so long."""


class PollOptions(msgspec.Struct, frozen=True, kw_only=True):
    """One poll."""

    timeout_seconds: float = 25.0
    max_events: int = 1_000
    max_bytes: int = 4_194_304
    """Of the events' JSON; one event always passes."""
    format: str = "envelope"


class PollAnswer(msgspec.Struct):
    """What one poll found."""

    events: list[bytes]
    cursor: str
    gaps: list[Gap]
    ended: list[Ended]
    closed: CloseCode | None
    """Why polling these streams again makes no sense (now); None: poll on from the cursor."""

    def encode(self) -> bytes:
        """The JSON answer, records byte for byte as stored."""
        return b'{"events":[%b],"cursor":"%b","gap":%b,"gaps":[%b],"ended":[%b],"closed":%b}' % (
            b",".join(self.events),
            self.cursor.encode(),
            frames.gap_payload(self.gaps[0]) if self.gaps else b"null",
            b",".join(map(frames.gap_payload, self.gaps)),
            b",".join(map(frames.control_payload, self.ended)),
            frames.closed_payload(self.closed) if self.closed is not None else b"null",
        )


class PollSink:
    """The page. It takes whole blocks like every sink, keeps what fits, and remembers how far that leads."""

    def __init__(self, options: PollOptions) -> None:
        self.events: list[bytes] = []
        self.gaps: list[Gap] = []
        self.ended: list[Ended] = []
        self.cursors: dict[StreamName, EntryId] = {}
        self.full = False
        self.changed = asyncio.Event()
        self._form = frames.WsForm(format=options.format)
        self._left = options.max_events
        self._bytes = options.max_bytes

    @property
    def has_news(self) -> bool:
        """Whether there is something to answer with."""
        return bool(self.events or self.gaps or self.ended)

    def write(self, block: Block) -> bool:
        """See `Sink`. What does not fit is dropped: the cursors do not cover it, and the subscription ends here."""
        if self.full:
            return False
        for cell in block.cells:
            item = cell.item
            if type(item) is Record:
                if not self._take(cell.frame(self._form)):
                    break
                self.cursors[item.stream] = item.id
            elif type(item) is Gap:
                self.gaps.append(item)
                self.cursors[item.stream] = item.cursor
            elif type(item) is Ended:
                self.ended.append(item)
        if self._left == 0:
            self.full = True
        self.changed.set()
        return True

    def _take(self, frame: bytes) -> bool:
        if self._left == 0 or (self.events and len(frame) > self._bytes):
            self.full = True
            return False
        self._left -= 1
        self._bytes -= len(frame)
        self.events.append(frame)
        return True

    async def wait_writable(self) -> None:
        """See `Sink`: a full page stays full until its subscription is closed."""
        await asyncio.Event().wait()


async def poll(
    hub: Hub,
    resume: Mapping[StreamName, Resume],
    options: PollOptions,
    *,
    leaving: Awaitable[Any],
    guards: Sequence[Guard] = (),
) -> PollAnswer | None:
    """Wait for news of the streams. None: the client left first.

    Args:
        hub: what to read from.
        resume: where to go on in each stream.
        options: how long to wait, how much to answer.
        leaving: done when the client is gone.
        guards: each returns when the reading has to end.

    Raises:
        LogUnavailable: the log does not answer, and there is nothing to answer with.
    """
    sink = PollSink(options)
    left = asyncio.ensure_future(leaving)
    tasks: list[asyncio.Future[Any]] = [left]
    try:
        opening = asyncio.ensure_future(hub.open(resume, sink))
        tasks.append(opening)
        await asyncio.wait((opening, left), return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            return None
        subscription = opening.result()
        sink.cursors = dict(subscription.cursors)
        running = asyncio.ensure_future(subscription.run())
        watching = [asyncio.ensure_future(_close_after(subscription, guard())) for guard in guards]
        tasks += [running, *watching]
        # A guard's code comes as the end of `running`: an answer before that would not have it.
        await _wait_news(hub, subscription, sink, options, resume, (running, left))
        return None if left.done() else _answer(hub, subscription, sink, running)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        _detach(tasks)


def _detach(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """A subscription whose `run` never got a turn gives nothing back by itself."""
    opening = tasks[1] if len(tasks) > 1 else None
    if opening is not None and not opening.cancelled() and opening.exception() is None:
        opening.result().detach()


async def _close_after(subscription: Subscription, guard: Awaitable[CloseCode]) -> CloseCode:
    code = await guard
    subscription.close(code)
    return code


async def _wait_news(
    hub: Hub,
    subscription: Subscription,
    sink: PollSink,
    options: PollOptions,
    resume: Mapping[StreamName, Resume],
    others: Sequence[asyncio.Future[Any]],
) -> None:
    """Return when there is an answer, the time is over, or one of the others is done."""
    now = asyncio.get_running_loop().time
    waits = not any(isinstance(where, Special) for where in resume.values()) and options.timeout_seconds > 0
    begun = now()
    deadline = begun + (options.timeout_seconds if waits else SETTLE_SECONDS)
    # The subscription's first steps need no waiting when the hub has the streams at hand.
    await asyncio.sleep(0)
    while not sink.full and not any(other.done() for other in others):
        eager = sink.has_news or not waits
        if (eager and subscription.live) or (sink.has_news and now() > begun + SETTLE_SECONDS):
            return
        if now() >= deadline:
            return
        sink.changed.clear()
        pause = GLANCE_SECONDS if eager else deadline - now()
        await _first(sink.changed.wait(), others, pause)


async def _first(change: Coroutine[Any, Any, Any], others: Sequence[asyncio.Future[Any]], seconds: float) -> None:
    changed = asyncio.ensure_future(change)
    try:
        await asyncio.wait((changed, *others), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        changed.cancel()


def _answer(hub: Hub, subscription: Subscription, sink: PollSink, running: asyncio.Future[CloseCode]) -> PollAnswer:
    closed: CloseCode | None = None
    whole = not sink.full
    # Until its task has ended the subscription may write on; the page is what its cursor says.
    sink.full = True
    if whole and running.done():
        error = running.exception()
        if error is not None and not isinstance(error, SinkClosed):
            raise error
        closed = running.result() if error is None else None
    if not sink.has_news and closed is None and not subscription.live and hub.degraded:
        raise LogUnavailable("the log does not answer")
    return PollAnswer(sink.events, format_cursor(sink.cursors), sink.gaps, sink.ended, closed)
