"""Server-Sent Events for a threaded server: an iterator of bytes that follows one run.

Rules of this file
1. A seat is taken at the first `next` and given back by `close`, at the end, and when the iterator is forgotten: a
   response that never starts holds none.
2. Nothing is read ahead: what the viewer does not take stays in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Generator, Iterator
from typing import Any

from tailrace.client.client import Tailrace
from tailrace.client.engine import Engine
from tailrace.client.subscription import Subscription
from tailrace.codes import CloseCode
from tailrace.core import frames
from tailrace.core.cursor import parse_resume
from tailrace.core.event import Item
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.errors import AlreadyClosed, TailraceError, UsageError

__all__ = ["EventIterator", "Viewers"]

RETRY_SECONDS = 2.0
FULL_RETRY_SECONDS = 10.0


class Viewers:
    """Seats for viewers: each takes a thread of the server."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._taken = 0
        self._lock = threading.Lock()

    def enter(self) -> bool:
        """Take a seat. False: none is free."""
        with self._lock:
            if self._taken >= self.most:
                return False
            self._taken += 1
            return True

    def leave(self) -> None:
        """Give it back."""
        with self._lock:
            self._taken -= 1

    @property
    def taken(self) -> int:
        """How many look now."""
        return self._taken


class EventIterator:
    """See `SyncEventStore.generate_events`. Iterate it in one thread; `close` is what a WSGI server calls."""

    def __init__(
        self,
        engine: Engine[Any],
        client: Tailrace,
        stream: StreamName,
        since: str,
        *,
        viewers: Viewers,
        format: str,  # noqa: A002
        named: bool,
        heartbeat_seconds: float,
    ) -> None:
        if format not in ("envelope", "raw"):
            raise UsageError("the format is envelope or raw")
        resume = parse_resume(since)
        self._begin = resume if isinstance(resume, EntryId) else ZERO
        self._engine = engine
        self._client = client
        self._stream = stream
        self._since = since
        self._viewers = viewers
        self._form = frames.SseForm(format=format, named=named)
        self._heartbeat_seconds = heartbeat_seconds
        self._seated = False
        self._subscription: Subscription | None = None
        self._parts = self._generate()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._parts)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop reading and give the seat back. Closing twice is the same as once."""
        self._parts.close()
        subscription, self._subscription = self._subscription, None
        if self._seated:
            self._seated = False
            self._viewers.leave()
        if subscription is not None:
            with contextlib.suppress(AlreadyClosed):  # with its store
                self._engine.call(subscription.aclose())

    def __del__(self) -> None:
        if self._seated:
            self._seated = False
            self._viewers.leave()

    def _generate(self) -> Generator[bytes, None, None]:
        if not self._viewers.enter():
            refused = frames.sse_refused(CloseCode.LIMITED, retry_after=FULL_RETRY_SECONDS)
            yield frames.retry(FULL_RETRY_SECONDS) + refused
            return
        self._seated = True
        self._subscription = subscription = self._engine.call(self._subscribe())
        yield frames.retry(RETRY_SECONDS) + frames.sse_open({self._stream: self._begin}, {})
        while True:
            try:
                item = self._engine.call(_next(subscription, self._heartbeat_seconds))
            except TimeoutError:
                yield frames.HEARTBEAT
                continue
            except TailraceError as error:
                yield frames.sse_closed(error.close_code, detail=str(error))
                return
            if item is None:
                yield frames.sse_closed(CloseCode.ENDED)
                return
            yield self._form.item(item)

    async def _subscribe(self) -> Subscription:
        return self._client.subscribe(self._stream, since=self._since, notices=True)


async def _next(subscription: Subscription, seconds: float) -> Item | None:
    async with asyncio.timeout(seconds):
        return await anext(subscription, None)
