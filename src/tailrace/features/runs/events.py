"""`EventStore`: a run's events for code that knows only runs and events, async, and `SyncEventStore` for threads.

Rules of this file
1. An id is the record's id, also as `Last-Event-ID`; the application's data is given back as it was.
2. A loss is an event `stream.gap` at its place (PROTOCOL.md §5.3); no application can publish that type.
3. `emit` never waits for Redis; everything else does, up to the client's deadline.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import msgspec

from tailrace.client.backend import CALL_SECONDS
from tailrace.client.client import Tailrace
from tailrace.client.credentials import Token
from tailrace.client.direct import DirectLog
from tailrace.client.engine import Engines
from tailrace.client.forks import tell_children
from tailrace.core.event import Gap, Record
from tailrace.core.frames import gap_payload
from tailrace.core.ids import EntryId
from tailrace.core.kinds import Kinds, StreamKind
from tailrace.errors import Malformed, Unsupported
from tailrace.eventlog.base import Log
from tailrace.features.runs.model import run_stream
from tailrace.features.runs.wsgi import EventIterator, Viewers

__all__ = ["OLD_KEYS", "EventStore", "StreamEvent", "SyncEventStore"]

GAP = "stream.gap"
OLD_KEYS = StreamKind(name="run", key_template="run:{name}:events")
"""The run streams of an existing store, without prefix and braces: `EventStore(url, kinds=[OLD_KEYS])`."""
MAX_VIEWERS = 32


class StreamEvent(msgspec.Struct, frozen=True):
    """An event of a run; with `id` and `time` when it was read."""

    type: str
    data: Any = None
    """Any JSON value."""
    id: str | None = None
    time: int | None = None
    """Unix milliseconds, the clock of Redis."""
    uid: str | None = None
    """The caller's own name for it: the same one is stored once."""

    @classmethod
    def of(cls, given: StreamEvent | Mapping[str, Any]) -> StreamEvent:
        """What `add` takes: an event, or an object with `type` and `data`.

        Raises:
            Malformed: neither.
        """
        if isinstance(given, StreamEvent):
            return given
        try:
            return msgspec.convert(given, cls)
        except msgspec.ValidationError as exc:
            raise Malformed(f"not an event: {exc}") from exc


class EventStore:
    """The events of runs.

    Args:
        at: `http(s)://…` of a gateway, the URL of a Redis, or an open log, which stays its owner's; without:
            `TAILRACE_URL`.
        token: for a gateway.
        spool: folder in which `emit` keeps what is not delivered yet; without one it is kept in memory.
        key_prefix: first part of the keys, as the gateway's, for the URL of a Redis.
        kinds: policies of stream kinds other than the usual ones, for the URL of a Redis; `OLD_KEYS` is one.
        timeout_seconds: how long a call is tried.

    Belongs to one event loop. Use it as a context manager, or call `aclose`.
    """

    def __init__(
        self,
        at: str | Log | None = None,
        *,
        token: Token | None = None,
        spool: str | os.PathLike[str] | None = None,
        key_prefix: str | None = None,
        kinds: Sequence[StreamKind] = (),
        timeout_seconds: float = CALL_SECONDS,
    ) -> None:
        if isinstance(at, str) or at is None:
            folder = os.fspath(spool) if spool is not None else None
            self.client = Tailrace(
                at,
                token=token,
                spool=folder,
                key_prefix=key_prefix,
                timeout_seconds=timeout_seconds,
                kinds=Kinds(kinds),
            )
        else:
            self.client = Tailrace.on(DirectLog.on(at))

    async def add(self, run_id: str, event: StreamEvent | Mapping[str, Any]) -> str:
        """Store an event and return its id: it is in the log, once.

        Raises:
            Malformed, TooLarge: not an event, or over 1 MB. StreamClosed: the run has ended.
            LogUnavailable: not stored. OutcomeUnknown: perhaps; give it a `uid` and add it again.
        """
        given = StreamEvent.of(event)
        stored = await self.client.publish(run_stream(run_id), given.type, given.data, uid=given.uid)
        return str(stored.id)

    def emit(self, run_id: str, event: StreamEvent | Mapping[str, Any]) -> bool:
        """Store an event without waiting; see `Tailrace.emit`. False: the spool is full; its place is told later."""
        given = StreamEvent.of(event)
        return self.client.emit(run_stream(run_id), given.type, given.data, uid=given.uid)

    async def flush(self, timeout_seconds: float | None = None) -> bool:
        """Wait until everything emitted so far is in the log. False: not within the time."""
        return await self.client.flush(timeout_seconds)

    async def get_events(
        self, run_id: str, start_id: str | None = None, end_id: str | None = None, limit: int = 100
    ) -> list[StreamEvent]:
        """Read events with `start_id <= id <= end_id`, the oldest first; `-` and `+` are the ends.

        Raises:
            InvalidCursor: not an id. LogUnavailable: no answer.
        """
        start = EntryId(0, 0) if start_id in (None, "-", "") else start_id
        end = None if end_id in (None, "+", "") else end_id
        return await self._read(run_id, start=start, end=end, limit=limit)

    async def get_events_after(self, run_id: str, id: str, limit: int = 1_000) -> list[StreamEvent]:  # noqa: A002
        """Read what came after an event, along the chain: what is missing there is told.

        Raises:
            InvalidCursor: not an id. LogUnavailable: no answer.
        """
        return await self._read(run_id, since=id, limit=limit)

    async def set_expire(self, run_id: str, seconds: float | None) -> bool:
        """Let a run's events expire in `seconds` (None: never). False: there are none.

        A run that ends expires by itself: after 24 hours, or as its kind says.

        Raises:
            Unsupported: over HTTP the gateway's policy decides.
        """
        backend = self.client.backend
        if not isinstance(backend, DirectLog):
            raise Unsupported("over HTTP the gateway's policy decides how long events stay")
        return await (await backend.log()).expire(run_stream(run_id), seconds)

    async def delete(self, run_id: str) -> bool:
        """Delete a run's events. False: there were none."""
        return await self.client.delete(run_stream(run_id))

    async def aclose(self, *, flush_seconds: float = 5.0) -> None:
        """See `Tailrace.aclose`."""
        await self.client.aclose(flush_seconds=flush_seconds)

    async def __aenter__(self) -> EventStore:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _read(self, run_id: str, *, limit: int, **bounds: Any) -> list[StreamEvent]:
        history = self.client.history(run_stream(run_id), limit=limit, **bounds)
        return [_event_of(item) async for item in history]


class SyncEventStore:
    """`EventStore` without `async`: its methods wait, and may be called from any thread, also after a fork.

    Args:
        max_viewers: how many `generate_events` may run at once: each holds one of the server's threads.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: Token | None = None,
        spool: str | os.PathLike[str] | None = None,
        key_prefix: str | None = None,
        kinds: Sequence[StreamKind] = (),
        timeout_seconds: float = CALL_SECONDS,
        max_viewers: int = MAX_VIEWERS,
    ) -> None:
        self._engines = Engines(
            lambda: EventStore(
                url, token=token, spool=spool, key_prefix=key_prefix, kinds=kinds, timeout_seconds=timeout_seconds
            )
        )
        self._viewers = Viewers(max_viewers)
        tell_children(self)

    def add(self, run_id: str, event: StreamEvent | Mapping[str, Any]) -> str:
        """See `EventStore.add`."""
        engine = self._engines.running()
        return engine.call(engine.client.add(run_id, event))

    def emit(self, run_id: str, event: StreamEvent | Mapping[str, Any]) -> bool:
        """See `EventStore.emit`. It waits for the store's own thread to take the event, never for the network."""
        engine = self._engines.running()

        async def emit() -> bool:
            return engine.client.emit(run_id, event)

        return engine.call(emit())

    def flush(self, timeout_seconds: float | None = None) -> bool:
        """See `EventStore.flush`."""
        engine = self._engines.running()
        return engine.call(engine.client.flush(timeout_seconds))

    def get_events(
        self, run_id: str, start_id: str | None = None, end_id: str | None = None, limit: int = 100
    ) -> list[StreamEvent]:
        """See `EventStore.get_events`."""
        engine = self._engines.running()
        return engine.call(engine.client.get_events(run_id, start_id, end_id, limit))

    def get_events_after(self, run_id: str, id: str, limit: int = 1_000) -> list[StreamEvent]:  # noqa: A002
        """See `EventStore.get_events_after`."""
        engine = self._engines.running()
        return engine.call(engine.client.get_events_after(run_id, id, limit))

    def set_expire(self, run_id: str, seconds: float | None) -> bool:
        """See `EventStore.set_expire`."""
        engine = self._engines.running()
        return engine.call(engine.client.set_expire(run_id, seconds))

    def delete(self, run_id: str) -> bool:
        """See `EventStore.delete`."""
        engine = self._engines.running()
        return engine.call(engine.client.delete(run_id))

    def generate_events(
        self,
        run_id: str,
        last_id: str | None = None,
        *,
        format: str = "raw",  # noqa: A002 - the word of the wire
        named: bool = True,
        heartbeat_seconds: float = 15.0,
    ) -> EventIterator:
        """Follow a run as Server-Sent Events, for the body of a WSGI response: bytes, until the run has ended.

        It goes on after `last_id` (the request's `Last-Event-ID`), else from the first event; loss, outage and end are
        told as a gateway tells them (PROTOCOL.md §6). Every viewer holds one thread of the server as long as it looks;
        beyond `max_viewers` one is refused and told to come back. A viewer that left is noticed with the next
        heartbeat. Where there are many viewers, let a gateway serve them.

        Raises:
            InvalidCursor, Malformed: not an id, not a run's id.
        """
        engine = self._engines.running()
        return EventIterator(
            engine,
            engine.client.client,
            run_stream(run_id),
            last_id or "0",
            viewers=self._viewers,
            format=format,
            named=named,
            heartbeat_seconds=heartbeat_seconds,
        )

    def close(self, *, flush_seconds: float = 5.0) -> None:
        """See `EventStore.aclose`."""
        self._engines.close(lambda store: store.aclose(flush_seconds=flush_seconds))

    def __enter__(self) -> SyncEventStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def forked(self) -> None:
        """See `Forked`: who looked is in the parent."""
        self._viewers = Viewers(self._viewers.most)


def _event_of(item: Record | Gap) -> StreamEvent:
    if isinstance(item, Gap):
        return StreamEvent(GAP, msgspec.json.decode(gap_payload(item)), str(item.cursor))
    return StreamEvent(item.type, msgspec.json.decode(item.data), str(item.id), item.time, item.uid)
