"""A subscription over SSE that comes back by itself.

Rules of this file
1. Pulled, not pushed: the socket is read only while the reader waits for an item, so a slow reader costs nothing here;
   the server notices, serves it from the log, or sends it away with its cursor.
2. `_places` is how far the received items go; a new connection begins there. What was received is given out first.
3. Every record must follow the one before (`prev`). If it does not, the connection is not believed and opened again at
   the last good place; if the same break comes again, it is told as a gap.
4. A wait that is cancelled leaves connecting to go on, and counts as silence: who waits briefly gets there, too.
5. The close code's range decides between coming back and ending (PROTOCOL.md §8).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

from tailrace.client.backend import FollowOptions, Link, pause_before
from tailrace.client.http import HttpFailure, Response
from tailrace.client.wire import Closed, Opened, Told, decode_control, decode_record
from tailrace.codes import CloseCode, may_return
from tailrace.core.cursor import CursorToken, Resume, Since, Special
from tailrace.core.event import Degraded, Ended, Gap, GapReason, Item, Record, StreamState
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.core.sse import ServerEvent, SseParser
from tailrace.errors import (
    Conflict,
    CorruptRecord,
    Forbidden,
    LogUnavailable,
    Malformed,
    NotFound,
    TailraceError,
    TooLarge,
    Unauthorized,
    UsageError,
)
from tailrace.eventlog.base import StreamInfo

__all__ = ["RemoteSource"]

STEADY_SECONDS = 5.0
"""A connection that lasted this long was a good one: the next attempt is the first again."""

_REFUSALS: dict[int, type[TailraceError]] = {
    CloseCode.MALFORMED: Malformed,
    CloseCode.UNAUTHORIZED: Unauthorized,
    CloseCode.FORBIDDEN: Forbidden,
    CloseCode.TOO_LARGE: TooLarge,
    CloseCode.NOT_FOUND: NotFound,
    CloseCode.REPLACED: Conflict,
}
_FINISHED = frozenset({CloseCode.ENDED, CloseCode.EXPIRED})


class RemoteSource:
    """See `Source`."""

    def __init__(
        self,
        open_stream: Callable[[Sequence[tuple[str, str]], str | None], Awaitable[Response]],
        info: Callable[[StreamName], Awaitable[StreamInfo]],
        resume: Mapping[StreamName, Resume],
        options: FollowOptions,
        give_up_seconds: float | None,
    ) -> None:
        self.give_up_seconds = give_up_seconds
        self._open_stream = open_stream
        self._info = info
        self._options = options
        self._silence = options.heartbeat_seconds * 3
        self._places: dict[StreamName, Resume] = dict(resume)
        self._chained: dict[StreamName, EntryId | None] = dict.fromkeys(resume)
        self._ended: dict[StreamName, Ended] = {}
        self._doubted: dict[StreamName, EntryId] = {}
        self._ready: deque[Item] = deque()
        self._response: Response | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._waited = 0.0
        """How long nothing came while we waited, in waits that were cancelled."""
        self._parser = SseParser()
        self._error: TailraceError | None = None
        self._finished = False
        self._attempt = 0
        self._not_before = 0.0
        self._down_since = time.monotonic()
        self._up_since = 0.0

    async def next(self) -> Item | None:
        """See `Source`."""
        while True:
            if self._ready:
                return self._ready.popleft()
            if self._error is not None:
                raise self._error
            if self._finished:
                return None
            if self._response is None:
                await self._wait_connected()
            else:
                await self._fill(self._response)

    async def aclose(self) -> None:
        """See `Source`."""
        self._finished = True
        self._ready.clear()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait((self._connecting,))
        self._hang_up()

    # -- the connection ------------------------------------------------------------------------------------

    async def _wait_connected(self) -> None:
        """Wait for one attempt. It goes on when the wait is cancelled, and the next wait is for the same one."""
        task = self._connecting
        if task is None:
            task = self._connecting = asyncio.get_running_loop().create_task(self._connect(), name="tailrace-connect")
        await asyncio.wait((task,))
        if self._connecting is task:
            self._connecting = None
        if not task.cancelled():
            task.result()

    async def _connect(self) -> None:
        pause = self._not_before - time.monotonic()
        if pause > 0:
            await asyncio.sleep(pause)
        if self._finished:
            return
        try:
            await self._settle_mixed()
            query, last_event_id = self._request()
            response = await self._open_stream(query, last_event_id)
        except HttpFailure as exc:
            self._down(str(exc))
        except TimeoutError:
            self._down("the server did not answer in time")
        except TailraceError as exc:
            if not exc.retryable:
                self._error = exc
            else:
                self._down(exc.detail, getattr(exc, "retry_after", None))
        else:
            self._opened(response)

    def _opened(self, response: Response) -> None:
        if self._finished:  # closed meanwhile
            response.close()
            return
        if response.status == 204:
            response.close()
            for stream, place in self._places.items():
                if stream not in self._ended:
                    self._end(stream, Ended(stream, place if isinstance(place, EntryId) else ZERO, StreamState.CLOSED))
            self._finished = True
            return
        content_type = response.headers.get("content-type", "")
        if not content_type.startswith("text/event-stream"):
            response.close()
            self._error = CorruptRecord(f"the server answered {content_type or 'nothing known'}, not an event stream")
            return
        self._response = response
        self._parser = SseParser()
        self._up_since, self._waited = time.monotonic(), 0.0

    async def _fill(self, response: Response) -> None:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._silence - self._waited):
                chunk = await response.next_chunk()
        except asyncio.CancelledError:
            self._waited += time.monotonic() - begun
            raise
        except TimeoutError:
            self._down("the server was silent for too long")
            return
        except HttpFailure as exc:
            self._down(str(exc))
            return
        self._waited = 0.0
        if not chunk:
            self._down("the server ended the connection")
            return
        try:
            for event in self._parser.feed(chunk):
                if isinstance(event, ServerEvent):
                    self._take(event)
                if self._response is None:
                    return
        except TailraceError as exc:
            self._hang_up()
            self._error = exc

    def _hang_up(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def _down(self, detail: str, retry_after: float | None = None) -> None:
        """The connection is lost, or could not be made: come back later, or give up."""
        now = time.monotonic()
        if self._response is not None:
            self._down_since = now
            if now - self._up_since > STEADY_SECONDS:
                self._attempt = 0
        self._hang_up()
        if self.give_up_seconds is not None and now - self._down_since >= self.give_up_seconds:
            self._error = LogUnavailable(detail)
            return
        pause = pause_before(self._attempt)
        if retry_after is not None:
            pause += retry_after
        if self.give_up_seconds is not None:
            pause = min(pause, self._down_since + self.give_up_seconds - now + 0.01)
        self._attempt += 1
        self._not_before = now + pause
        self._tell(Link(False, detail, pause))

    def _tell(self, link: Link) -> None:
        if self._options.on_link is not None:
            self._options.on_link(link)

    # -- where to begin ------------------------------------------------------------------------------------

    async def _settle_mixed(self) -> None:
        """Several streams, and "now" for only some of them, do not fit into one cursor: ask where those end."""
        if len(set(map(type, self._places.values()))) <= 1 and Special.NOW not in self._places.values():
            return
        if len(set(self._places.values())) == 1:
            return
        for stream, place in self._places.items():
            if place is Special.NOW:
                self._places[stream] = (await self._info(stream)).last_id or ZERO
            elif isinstance(place, Since):
                raise UsageError("a time is a place for all streams of a subscription, not for some of them")

    def _request(self) -> tuple[list[tuple[str, str]], str | None]:
        """Query and cursor. What has ended already is asked for again: the server may know better by now."""
        query = [("format", "envelope"), *(("stream", str(stream)) for stream in self._places)]
        places = self._places
        first = next(iter(places.values()))
        if all(place == first for place in places.values()) and not (isinstance(first, EntryId) and len(places) > 1):
            if first is Special.DEFAULT:
                return query, None
            return query, str(first.ms) if isinstance(first, Since) else _text(first)
        token = CursorToken(places)
        for stream, place in places.items():
            if isinstance(place, EntryId):
                token.move(stream, place)
            elif place is not Special.DEFAULT:
                raise UsageError("a time is a place for all streams of a subscription, not for some of them")
        return query, str(token)

    # -- what comes ----------------------------------------------------------------------------------------

    def _take(self, event: ServerEvent) -> None:
        if event.event.startswith("stream."):
            told = decode_control(event.data.encode())
            if told is not None:
                self._take_told(told)
            return
        record = decode_record(event.data.encode())
        stream = record.stream
        if stream not in self._places:
            return
        chained = self._chained[stream]
        if not record.foreign:
            if chained is not None and record.prev != chained:
                if record.id == chained:
                    return
                self._break(record, chained)
                if self._response is None:
                    return
            self._chained[stream] = record.id
        self._places[stream] = record.id
        self._ready.append(record)
        self._doubted.pop(stream, None)
        self._ended.pop(stream, None)

    def _break(self, record: Record, chained: EntryId) -> None:
        """The record does not follow what we have: ask again once, then say it."""
        stream = record.stream
        if self._doubted.get(stream) != chained:
            self._doubted[stream] = chained
            self._down("a record did not follow the one before")
            return
        missed = record.id.seq - chained.seq - 1 if record.prev is not None and record.prev > chained else None
        reason = GapReason.DELETED if missed is not None else GapReason.RESET
        self._ready.append(Gap(stream, chained, record.id, missed, reason, record.prev or ZERO))

    def _take_told(self, told: Told) -> None:
        if isinstance(told, Opened):
            for stream, cursor in told.cursors.items():
                if stream in self._places and not isinstance(self._places[stream], EntryId):
                    self._places[stream] = cursor
            self._tell(Link(True))
        elif isinstance(told, Gap):
            if told.stream in self._places:
                self._places[told.stream] = told.cursor
                self._chained[told.stream] = None
                self._ready.append(told)
        elif isinstance(told, Ended):
            if told.stream in self._places:
                # Told again on every new connection; what was given out already is not given out twice.
                self._end(told.stream, told)
        elif isinstance(told, Closed):
            self._take_closed(told)
        elif isinstance(told, Degraded):
            self._ready.append(told)

    def _end(self, stream: StreamName, ended: Ended) -> None:
        if self._ended.get(stream) != ended:
            self._ended[stream] = ended
            self._ready.append(ended)

    def _take_closed(self, closed: Closed) -> None:
        if may_return(closed.code):
            retry_after = closed.retry_after
            if retry_after is None and self._parser.retry_ms is not None:
                # Drawn by the server from a range, so that clients it sends away together do not return together.
                retry_after = self._parser.retry_ms / 1_000
            self._down(closed.detail or closed.reason.lower().replace("_", " "), retry_after)
            return
        self._hang_up()
        if closed.code in _FINISHED:
            self._finished = True
        else:
            refusal = _REFUSALS.get(closed.code, TailraceError)
            self._error = refusal(closed.detail or f"the server ended the subscription: {closed.reason}")


def _text(place: Resume) -> str:
    return str(place.value) if isinstance(place, Special) else str(place)
