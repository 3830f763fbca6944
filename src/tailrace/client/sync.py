"""`TailraceSync`: the same client for code without an event loop, in any thread, also after a fork."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from tailrace.client.backend import CALL_SECONDS, Link, Place
from tailrace.client.client import Tailrace
from tailrace.client.credentials import Token
from tailrace.client.engine import Engine, Engines
from tailrace.client.subscription import Subscription
from tailrace.core.event import Event, Gap, Item, Record
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.errors import AlreadyClosed
from tailrace.eventlog.base import Appended, StreamInfo

__all__ = ["SubscriptionSync", "TailraceSync"]


class TailraceSync:
    """A client without `async`. Takes what `Tailrace` takes; its methods wait, and may be called from any thread.

    A process that was forked from one that used it gets connections of its own; subscriptions stay with the parent,
    and so do events that were emitted before the fork.
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
    ) -> None:
        self._engines = Engines(
            lambda: Tailrace(
                url, token=token, spool=spool, key_prefix=key_prefix, ssl=ssl, timeout_seconds=timeout_seconds
            )
        )

    def publish(
        self,
        stream: str,
        type: str,  # noqa: A002
        data: Any = None,
        *,
        uid: str | None = None,
        key: str | None = None,
        actor: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Appended:
        """See `Tailrace.publish`."""
        engine = self._engines.running()
        return engine.call(
            engine.client.publish(stream, type, data, uid=uid, key=key, actor=actor, timeout_seconds=timeout_seconds)
        )

    def publish_many(
        self, stream: str, events: Iterable[Event], *, timeout_seconds: float | None = None
    ) -> list[Appended]:
        """See `Tailrace.publish_many`."""
        engine = self._engines.running()
        return engine.call(engine.client.publish_many(stream, list(events), timeout_seconds=timeout_seconds))

    def retry(self, receipt: object, *, timeout_seconds: float | None = None) -> list[Appended]:
        """See `Tailrace.retry`."""
        engine = self._engines.running()
        return engine.call(engine.client.retry(receipt, timeout_seconds=timeout_seconds))

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
        """See `Tailrace.emit`. It waits for the client's thread to take the event, never for the network."""
        engine = self._engines.running()

        async def emit() -> bool:
            return engine.client.emit(stream, type, data, uid=uid, key=key, actor=actor)

        return engine.call(emit())

    def flush(self, timeout_seconds: float | None = None) -> bool:
        """See `Tailrace.flush`."""
        engine = self._engines.running()
        return engine.call(engine.client.flush(timeout_seconds))

    def subscribe(
        self,
        *streams: str,
        since: Place | Mapping[str, Place] = None,
        notices: bool = False,
        give_up_seconds: float | None = None,
        heartbeat_seconds: float = 15.0,
        on_link: Callable[[Link], None] | None = None,
    ) -> SubscriptionSync:
        """See `Tailrace.subscribe`. `on_link` is called in the client's thread."""
        engine = self._engines.running()

        async def subscribe() -> Subscription:
            return engine.client.subscribe(
                *streams,
                since=since,
                notices=notices,
                give_up_seconds=give_up_seconds,
                heartbeat_seconds=heartbeat_seconds,
                on_link=on_link,
            )

        return SubscriptionSync(engine, engine.call(subscribe()))

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
    ) -> Iterator[Record | Gap]:
        """See `Tailrace.history`; an iterator that reads page by page."""
        engine = self._engines.running()
        history = engine.client.history(
            stream, start=start, end=end, since=since, limit=limit, reverse=reverse, types=types
        )

        def items() -> Iterator[Record | Gap]:
            pages = history.pages()
            while (page := engine.call(_next_page(pages))) is not None:
                yield from page.items()

        return items()

    def info(self, stream: str) -> StreamInfo:
        """See `Tailrace.info`."""
        engine = self._engines.running()
        return engine.call(engine.client.info(stream))

    def close_stream(self, stream: str) -> None:
        """See `Tailrace.close_stream`."""
        engine = self._engines.running()
        engine.call(engine.client.close_stream(stream))

    def delete(self, stream: str) -> bool:
        """See `Tailrace.delete`."""
        engine = self._engines.running()
        return engine.call(engine.client.delete(stream))

    def close(self, *, flush_seconds: float = 5.0) -> None:
        """See `Tailrace.aclose`."""
        self._engines.close(lambda client: client.aclose(flush_seconds=flush_seconds))

    def __enter__(self) -> TailraceSync:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SubscriptionSync:
    """See `Subscription`: iterate it; one thread at a time."""

    def __init__(self, engine: Engine[Tailrace], subscription: Subscription) -> None:
        self._engine = engine
        self._subscription = subscription

    @property
    def cursor(self) -> str | None:
        """See `Subscription.cursor`."""
        return self._subscription.cursor

    @property
    def cursors(self) -> dict[StreamName, EntryId]:
        """See `Subscription.cursors`."""
        return self._subscription.cursors

    def __iter__(self) -> SubscriptionSync:
        return self

    def __next__(self) -> Item:
        item = self.next()
        if item is None:
            raise StopIteration
        return item

    def next(self, timeout_seconds: float | None = None) -> Item | None:
        """Wait for the next item; None: every stream has ended.

        Raises:
            TimeoutError: nothing came within the time; nothing is lost, call again.
        """
        if os.getpid() != self._engine.pid:
            raise AlreadyClosed("the subscription belongs to the parent process")
        return self._engine.call(_next_item(self._subscription, timeout_seconds))

    def close(self) -> None:
        """See `Subscription.aclose`."""
        if os.getpid() == self._engine.pid:
            with contextlib.suppress(AlreadyClosed):  # with its client
                self._engine.call(self._subscription.aclose())

    def __enter__(self) -> SubscriptionSync:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _next_item(subscription: Subscription, timeout_seconds: float | None) -> Item | None:
    async with asyncio.timeout(timeout_seconds):
        return await anext(subscription, None)


async def _next_page(pages: Any) -> Any:
    return await anext(pages, None)
