"""The `Backend` straight on a log: no gateway, a hub of its own in this process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from tailrace.client.backend import CALL_SECONDS, FollowOptions, Link, PageQuery, pause_before
from tailrace.client.wire import PageAnswer
from tailrace.codes import CloseCode
from tailrace.core.cursor import Resume
from tailrace.core.event import Event, Item, Record, StreamState
from tailrace.core.kinds import Kinds
from tailrace.core.names import StreamName
from tailrace.errors import LogUnavailable, NotFound, OutcomeUnknown, TailraceError
from tailrace.eventlog.base import Appended, Log, StreamInfo
from tailrace.hub.block import Block
from tailrace.hub.hub import Hub
from tailrace.hub.subscription import Subscription
from tailrace.web.history import HistoryQuery, read_history

__all__ = ["DirectLog"]

UNREAD_BYTES = 262_144
"""Above this a subscription takes no more and reads on from the log later."""


class DirectLog:
    """The `Backend` on a log object. Its connection and hub are made on first use."""

    batch_events = 1_000
    call_seconds = CALL_SECONDS

    def __init__(self, open_log: Callable[[], Awaitable[Log]], kinds: Kinds, *, closes: bool = True) -> None:
        self._open_log = open_log
        self._kinds = kinds
        self._closes = closes
        self._log: Log | None = None
        self._hub: Hub | None = None
        self._hub_task: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()

    @classmethod
    def at(cls, url: str, key_prefix: str, given: Kinds | None = None) -> DirectLog:
        """On the Redis at a URL."""
        kinds = given or Kinds()

        async def open_log() -> Log:
            from tailrace.eventlog.redis.log import RedisLog

            return RedisLog.connect(url, prefix=key_prefix, kinds=kinds)

        return cls(open_log, kinds)

    @classmethod
    def on(cls, log: Log, kinds: Kinds | None = None) -> DirectLog:
        """On a log that is open already and is closed by its owner."""

        async def given() -> Log:
            return log

        return cls(given, kinds or Kinds(), closes=False)

    async def append(
        self, stream: StreamName, events: Sequence[Event], *, seconds: float, owner_epoch: int | None = None
    ) -> list[Appended]:
        """See `Backend`. What was surely not stored is tried again; so is, by its receipt, what perhaps was."""
        log = self._log or await self.log()
        try:
            return await log.append(stream, events, owner_epoch=owner_epoch)
        except (LogUnavailable, OutcomeUnknown) as exc:
            append = partial(log.append, stream, events, owner_epoch=owner_epoch)
            return await _settle(exc, seconds, append, log.retry)

    async def retry(self, receipt: object, *, seconds: float) -> list[Appended]:
        """See `Backend`."""
        log = await self.log()
        try:
            return await log.retry(receipt)
        except (LogUnavailable, OutcomeUnknown) as exc:
            return await _settle(exc, seconds, lambda: log.retry(receipt), log.retry)

    def follow(
        self, resume: Mapping[StreamName, Resume], options: FollowOptions, give_up_seconds: float | None
    ) -> DirectSource:
        """See `Backend`."""
        return DirectSource(self, resume, options, give_up_seconds)

    async def page(self, stream: StreamName, query: PageQuery) -> PageAnswer:
        """See `Backend`."""
        asked = HistoryQuery(
            start=query.start,
            end=query.end,
            since=query.since,
            limit=query.limit,
            newest_first=query.reverse,
            types=frozenset(query.types) or None,
        )
        page = await read_history(await self.log(), stream, asked)
        next_id = str(page.next_id) if page.next_id is not None else None
        return PageAnswer(tuple(page.records), next_id is not None, next_id, tuple(page.gaps))

    async def info(self, stream: StreamName) -> StreamInfo:
        """See `Backend`."""
        info = await (await self.log()).info(stream)
        if info.state is StreamState.MISSING:
            raise NotFound("there is no such stream")
        return info

    async def close(self, stream: StreamName) -> None:
        """See `Backend`."""
        await (await self.log()).close(stream)

    async def delete(self, stream: StreamName) -> bool:
        """See `Backend`."""
        return await (await self.log()).delete(stream)

    async def aclose(self) -> None:
        """See `Backend`."""
        if self._hub_task is not None:
            self._hub_task.cancel()
            await asyncio.wait([self._hub_task])
        if self._log is not None and self._closes:
            await self._log.aclose()

    async def log(self) -> Log:
        """The log, opened on first use."""
        if self._log is None:
            async with self._opening:
                if self._log is None:
                    self._log = await self._open_log()
        return self._log

    async def hub(self) -> Hub:
        """The hub, running.

        Raises: what ended it, if a defect did.
        """
        log = await self.log()
        if self._hub is None:
            self._hub = Hub(log, self._kinds)
            self._hub_task = asyncio.get_running_loop().create_task(self._hub.run(), name="tailrace-hub")
            await self._hub.wait_running()
        if self._hub_task is not None and self._hub_task.done() and not self._hub_task.cancelled():
            self._hub_task.result()
        return self._hub


class DirectSource:
    """See `Source`: a sink of the hub that keeps a bounded stretch of blocks until they are asked for."""

    def __init__(
        self,
        backend: DirectLog,
        resume: Mapping[StreamName, Resume],
        options: FollowOptions,
        give_up_seconds: float | None,
    ) -> None:
        self.give_up_seconds = give_up_seconds
        self._backend = backend
        self._resume = dict(resume)
        self._options = options
        self._blocks: deque[Block] = deque()
        self._items: deque[Item] = deque()
        self._unread = 0
        self._closed = False
        self._subscription: Subscription | None = None
        self._task: asyncio.Task[CloseCode] | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()

    async def next(self) -> Item | None:
        """See `Source`."""
        while True:
            if self._items:
                return self._items.popleft()
            if self._blocks:
                block = self._blocks.popleft()
                self._unread -= _weight(block)
                self._room.set()
                self._items.extend(block.items)
                continue
            if self._closed:
                return None
            if self._task is None:
                await self._open()
            elif self._task.done():
                self._check_end(self._task)
                return None
            self._wake.clear()
            if not self._blocks and self._task is not None and not self._task.done():
                await self._wake.wait()

    async def aclose(self) -> None:
        """See `Source`."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        elif self._subscription is not None:
            self._subscription.detach()

    def write(self, block: Block) -> bool:
        """See `Sink`."""
        if self._unread > UNREAD_BYTES:
            return False
        self._blocks.append(block)
        self._unread += _weight(block)
        self._wake.set()
        return True

    async def wait_writable(self) -> None:
        """See `Sink`. A reader in the same process may take its time."""
        while self._unread > UNREAD_BYTES:
            self._room.clear()
            await self._room.wait()

    async def _open(self) -> None:
        """Open the subscription, and try again while the log does not answer."""
        loop = asyncio.get_running_loop()
        since, attempt = loop.time(), 0
        while True:
            try:
                hub = await self._backend.hub()
                self._subscription = await hub.open(self._resume, self)
                break
            except LogUnavailable as exc:
                if self.give_up_seconds is not None and loop.time() - since >= self.give_up_seconds:
                    raise
                pause = pause_before(attempt)
                if self.give_up_seconds is not None:
                    pause = min(pause, since + self.give_up_seconds - loop.time() + 0.01)
                self._tell(Link(False, exc.detail, pause))
                attempt += 1
                await asyncio.sleep(pause)
            if self._closed:
                return
        if self._closed:
            self._subscription.detach()
            return
        self._tell(Link(True))
        self._task = loop.create_task(self._subscription.run())
        self._task.add_done_callback(lambda _: self._wake.set())

    def _check_end(self, task: asyncio.Task[CloseCode]) -> None:
        if task.cancelled():
            return  # closed, while somebody waited
        code = task.result()
        if code not in (CloseCode.ENDED, CloseCode.EXPIRED):
            raise TailraceError(f"the subscription ended: {code.name}", close_code=int(code))

    def _tell(self, link: Link) -> None:
        if self._options.on_link is not None:
            self._options.on_link(link)


async def _settle(
    error: LogUnavailable | OutcomeUnknown,
    seconds: float,
    first: Callable[[], Awaitable[list[Appended]]],
    again: Callable[[object], Awaitable[list[Appended]]],
) -> list[Appended]:
    """Try on until it is settled or the time is over; the log has a deadline of its own for every attempt."""
    loop = asyncio.get_running_loop()
    end, attempt, call = loop.time() + seconds, 0, first
    unknown: OutcomeUnknown | None = None
    while True:
        pause = pause_before(attempt, base=0.1, cap=2.0)
        if isinstance(error, OutcomeUnknown):
            unknown = error
            call = partial(again, error.receipt)
        else:
            pause = max(pause, error.retry_after * 0.2)
        if loop.time() + pause >= end:
            # Once the outcome was unknown, a later attempt that stored nothing does not make it known.
            raise unknown or error
        attempt += 1
        await asyncio.sleep(pause)
        try:
            return await call()
        except (LogUnavailable, OutcomeUnknown) as exc:
            error = exc


def _weight(block: Block) -> int:
    return sum((len(item.data) if isinstance(item, Record) else 0) + 200 for item in block.items)
