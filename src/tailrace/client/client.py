"""`Tailrace`: publish, subscribe and read history, over HTTP or straight on Redis."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tailrace.client.backend import (
    CALL_SECONDS,
    Backend,
    FollowOptions,
    Link,
    PageQuery,
    Place,
    checked_event,
    resume_of,
)
from tailrace.client.credentials import Token
from tailrace.client.history import History
from tailrace.client.subscription import Subscription
from tailrace.core.event import Event
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.kinds import Kinds
from tailrace.core.names import StreamName
from tailrace.errors import AlreadyClosed, ConfigError, TailraceError, UsageError
from tailrace.eventlog.base import Appended, StreamInfo

if TYPE_CHECKING:
    from tailrace.client.emitting import Emitting

__all__ = ["Tailrace", "open_backend", "target_of"]

MAX_BATCH_BYTES = 6_291_456


class Tailrace:
    """A client of one log.

    Args:
        url: `http(s)://host:port` of a gateway (with a path: the root of its API instead of `/api/v1`), or the URL of
            Redis (`redis://`, `rediss://`, `unix://`, …), used without a gateway; without one: `TAILRACE_URL`.
        token: for a gateway, a JWT or a function (async or not) that answers a fresh one; None: `TAILRACE_TOKEN`;
            an empty text: no token.
        spool: folder in which `emit` keeps what is not delivered yet; without one it is kept in memory.
        key_prefix: first part of the keys in Redis, as the gateway's, for the URL of a Redis; without:
            `TAILRACE_KEY_PREFIX`, else `tailrace:`.
        ssl: an `ssl.SSLContext` for `https://`; without: the system's certificates.
        timeout_seconds: how long a call is tried when nothing else is said.
        kinds: policies of stream kinds, as the gateway's, for the URL of a Redis.

    Belongs to one event loop. Use it as a context manager, or call `aclose`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: Token | None = None,
        spool: Path | str | None = None,
        key_prefix: str | None = None,
        ssl: Any = None,
        timeout_seconds: float = CALL_SECONDS,
        kinds: Kinds | None = None,
    ) -> None:
        url = url or os.environ.get("TAILRACE_URL")
        if not url:
            raise ConfigError("no address: give one, or set TAILRACE_URL")
        token = os.environ.get("TAILRACE_TOKEN") if token is None else token
        self.backend: Backend = open_backend(url, token, key_prefix, ssl, kinds)
        """The way to the log."""
        self.backend.call_seconds = timeout_seconds
        self._spool = Path(spool) if spool is not None else None
        self._target = target_of(url)
        self._emitting: Emitting | None = None
        self._subscriptions: set[Subscription] = set()
        self._closed = False

    @classmethod
    def on(cls, backend: Backend, *, spool: Path | None = None) -> Tailrace:
        """A client of a backend that exists already; closes it with itself."""
        client = cls.__new__(cls)
        client.backend = backend
        client._spool = spool
        client._target = "here"
        client._emitting = None
        client._subscriptions = set()
        client._closed = False
        return client

    # -- writing -------------------------------------------------------------------------------------------

    async def publish(
        self,
        stream: str,
        type: str,  # noqa: A002 - the word of the domain
        data: Any = None,
        *,
        uid: str | None = None,
        key: str | None = None,
        actor: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Appended:
        """Publish one event and return its id: it is in the log, once, however often it had to be sent.

        Cancelled: it may be in the log. With a `uid` of your own it can be published again without a duplicate.

        Raises:
            Malformed, TooLarge, InvalidStream: not an event, or not a stream's name.
            Unauthorized, Forbidden, StreamClosed, IdempotencyConflict: not allowed.
            LogUnavailable: not stored in time. OutcomeUnknown: perhaps; `retry(error.receipt)` settles it.
        """
        self._check_open()
        seconds = self._seconds(timeout_seconds)
        name = StreamName.parse(stream)
        return (await self.backend.append(name, (Event(type, data, uid, key, actor),), seconds=seconds))[0]

    async def publish_many(
        self, stream: str, events: Iterable[Event], *, timeout_seconds: float | None = None
    ) -> list[Appended]:
        """Publish events in their order and return their ids.

        They go in batches; each is stored in full or not at all. When one fails, `error.data["appended"]` says how
        many events before it were stored.

        Raises: as `publish`.
        """
        self._check_open()
        name = StreamName.parse(stream)
        # All are checked before the first is sent.
        checked = [checked_event(event) for event in events]
        done: list[Appended] = []
        for batch in _batches(checked, self.backend.batch_events):
            try:
                done += await self.backend.append(name, batch, seconds=self._seconds(timeout_seconds))
            except TailraceError as exc:
                exc.data["appended"] = len(done)
                raise
        return done

    async def retry(self, receipt: object, *, timeout_seconds: float | None = None) -> list[Appended]:
        """Settle an `OutcomeUnknown`: its events are stored once, whatever became of the first try.

        Raises: as `publish`.
        """
        self._check_open()
        return await self.backend.retry(receipt, seconds=self._seconds(timeout_seconds))

    def emit(
        self,
        stream: str,
        type: str,  # noqa: A002
        data: Any = None,
        *,
        uid: str | None = None,
        key: str | None = None,
        actor: str | None = None,
    ) -> bool:
        """Publish without waiting: the event goes through the spool, in order, once, when the log takes it.

        Never fails because of a server. False: the spool is full and the event was skipped; an event `events.skipped`
        will say at its place in the stream how many were.

        Raises:
            Malformed, TooLarge, InvalidStream: not an event, or not a stream's name.
            UsageError: the spool folder cannot be used.
        """
        self._check_open()
        return self._emitter().emit(StreamName.parse(stream), checked_event(Event(type, data, uid, key, actor)))

    async def flush(self, timeout_seconds: float | None = None) -> bool:
        """Wait until everything emitted so far is in the log. False: not within the time."""
        return self._emitting is None or await self._emitting.flush(timeout_seconds)

    def _emitter(self) -> Emitting:
        if self._emitting is None:
            from tailrace.client.emitting import Emitting

            self._emitting = Emitting(self.backend, self._spool, self._target)
        return self._emitting

    # -- reading -------------------------------------------------------------------------------------------

    def subscribe(
        self,
        *streams: str,
        since: Place | Mapping[str, Place] = None,
        notices: bool = False,
        give_up_seconds: float | None = None,
        heartbeat_seconds: float = 15.0,
        on_link: Callable[[Link], None] | None = None,
    ) -> Subscription:
        """Read streams live: `async for item in client.subscribe("run:42")` yields `Record`, `Gap` and `Ended`.

        Args:
            streams: one or more names; up to 32 over HTTP.
            since: where to begin: a subscription's `cursor`, an id, a time, `"0"` (the first retained record), `"$"`
                (now), or one of these per stream; without: where the streams' kinds begin.
            notices: yield `Degraded` too, when the log stops or starts to answer.
            give_up_seconds: raise `LogUnavailable` after so long without a connection; without: try for ever.
            heartbeat_seconds: the server's; after three times as long in silence the connection is made anew.
            on_link: called when the connection comes up or goes down.

        Raises:
            InvalidStream, InvalidCursor: not a name, not a place.
        """
        self._check_open()
        names = [StreamName.parse(stream) for stream in streams]
        if not names:
            raise UsageError("name at least one stream")
        resume = resume_of(since, list(dict.fromkeys(names)))
        options = FollowOptions(heartbeat_seconds=heartbeat_seconds, on_link=on_link)
        source = self.backend.follow(resume, options, give_up_seconds)
        subscription = Subscription(
            source, resume, notices=notices, on_close=lambda: self._subscriptions.discard(subscription)
        )
        self._subscriptions.add(subscription)
        return subscription

    def history(
        self,
        stream: str,
        *,
        start: str | EntryId | datetime | None = None,
        end: str | EntryId | datetime | None = None,
        since: str | EntryId | None = None,
        limit: int | None = None,
        reverse: bool = False,
        types: Sequence[str] = (),
    ) -> History:
        """Read records that are there now: iterate the answer, or take its `pages()`.

        Args:
            stream: whose.
            start: the first id (inclusive) or time.
            end: the last id (inclusive) or time.
            since: a cursor: what comes after it.
            limit: at most so many records.
            reverse: the newest first.
            types: only these.
        """
        self._check_open()
        if since is not None and (start is not None or reverse):
            raise UsageError("`since` goes forward from a cursor; it excludes `start` and `reverse`")
        query = PageQuery(
            start=_bound(start, last=False),
            end=_bound(end, last=True),
            since=_bound(since, last=False),
            reverse=reverse,
            types=tuple(types),
        )
        return History(self.backend, StreamName.parse(stream), query, limit)

    # -- streams -------------------------------------------------------------------------------------------

    async def info(self, stream: str) -> StreamInfo:
        """Describe a stream: its state, length, first and last id, and when it expires.

        Raises:
            NotFound: there is no such stream.
        """
        self._check_open()
        return await self.backend.info(StreamName.parse(stream))

    async def close_stream(self, stream: str) -> None:
        """End a stream: readers get the rest and `Ended`; nothing can be appended any more.

        Raises:
            NotFound: there is no such stream.
        """
        self._check_open()
        await self.backend.close(StreamName.parse(stream))

    async def delete(self, stream: str) -> bool:
        """Delete a stream. False: it was not there."""
        self._check_open()
        return await self.backend.delete(StreamName.parse(stream))

    # -- life ----------------------------------------------------------------------------------------------

    async def aclose(self, *, flush_seconds: float = 5.0) -> None:
        """Deliver what was emitted, as far as the time goes, and give back everything.

        What is left stays in the spool folder and is delivered by the next client on it; without one it is lost.
        Cancelled: it ends without delivering more, and gives back everything all the same.
        """
        if self._closed:
            return
        self._closed = True
        try:
            for subscription in list(self._subscriptions):
                await subscription.aclose()
            if self._emitting is not None:
                await self._emitting.aclose(flush_seconds)
        finally:
            await asyncio.shield(self.backend.aclose())

    async def __aenter__(self) -> Tailrace:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _seconds(self, given: float | None) -> float:
        return self.backend.call_seconds if given is None else given

    def _check_open(self) -> None:
        if self._closed:
            raise AlreadyClosed("the client was closed")


def target_of(url: str) -> str:
    """A name for a server that holds no secret: events left in a spool are only ever delivered to the same one."""
    scheme, _, rest = url.partition("://")
    return f"{scheme.lower()}://{rest.rpartition('@')[2].partition('?')[0].rstrip('/')}"


def open_backend(
    url: str, token: Token | None, key_prefix: str | None = None, ssl: Any = None, kinds: Kinds | None = None
) -> Backend:
    """The way to the log at a URL."""
    scheme = url.partition("://")[0].lower()
    if scheme in ("http", "https"):
        from tailrace.client.remote import RemoteLog

        return RemoteLog(url, token, ssl=ssl)
    if "://" not in url:
        raise ConfigError(f"{url!r} is no address: http://… is a gateway's, redis://… or unix://… a Redis's")
    from tailrace.client.direct import DirectLog

    prefix = os.environ.get("TAILRACE_KEY_PREFIX", "tailrace:") if key_prefix is None else key_prefix
    return DirectLog.at(url, prefix, kinds)


def _batches(events: Sequence[Event], most: int) -> Iterable[list[Event]]:
    batch: list[Event] = []
    size = 0
    for event in events:
        if batch and (len(batch) >= most or size + len(event.data) > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(event)
        size += len(event.data)
    if batch:
        yield batch


def _bound(place: str | EntryId | datetime | None, *, last: bool) -> EntryId | None:
    """A time is the first or the last id that it can have."""
    if place is None or isinstance(place, EntryId):
        return place
    if isinstance(place, datetime):
        return EntryId(int(place.timestamp() * 1_000), 2**64 - 1 if last else 0)
    return ZERO if place == "0" else EntryId.parse(place)
