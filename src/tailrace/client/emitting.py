"""Delivery of what was emitted: in order, once, as soon as the log takes it.

Rules of this file
1. One batch is under way at a time, so that order holds; it is tried with the same uids until it is settled.
2. What may succeed later is tried again for ever, with full jitter. What never can (a closed stream, a bad event) is
   dropped alone, and told to `on_refused`; what comes behind it goes on.
3. A refused token is waited out: it may be renewed, and the events are worth more than the wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from tailrace.client.backend import Backend, pause_before
from tailrace.client.spool import BATCH_EVENTS, Entry, MemorySpool, Spool, SpoolFile, orphans
from tailrace.core.codec import encode
from tailrace.core.event import SKIPPED, Event
from tailrace.core.names import StreamName
from tailrace.errors import (
    ConfigError,
    Forbidden,
    LogError,
    NotFound,
    RateLimited,
    TailraceError,
    Unauthorized,
    UsageError,
    WouldBlock,
)

__all__ = ["Delivery", "Emitting"]

log = logging.getLogger("tailrace.client")

T = TypeVar("T")
LINGER_SECONDS = 0.03
"""Entries that come this close together leave together."""
ATTEMPT_SECONDS = 4.0
REFUSED_TOKEN_SECONDS = 5.0
INBOX_BYTES = 16_777_216
OVERHEAD_BYTES = 160
STORE_ENTRIES = 100
FULL_SECONDS = 0.2


class Delivery:
    """Moves a spool's entries to the log. Run `run` as an owned task.

    Args:
        backend: the log.
        spool: where the entries wait.
        threaded: the spool's calls may wait for a disk: make them in a thread.
        on_refused: an entry that will never be stored was dropped.
        on_trouble: why nothing goes on now; None: it goes on again.
    """

    def __init__(
        self,
        backend: Backend,
        spool: Spool,
        *,
        threaded: bool,
        on_refused: Callable[[Entry, TailraceError], None] | None = None,
        on_trouble: Callable[[TailraceError | None], None] | None = None,
    ) -> None:
        self._backend = backend
        self._spool = spool
        self._threaded = threaded
        self._on_refused = on_refused or self._log_refusal
        self._complained: StreamName | None = None
        self._on_trouble = on_trouble
        self._more = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._hurry = False
        self.settled = 0
        """How many entries were stored or refused for good."""
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._attempt = 0
        self._most = BATCH_EVENTS
        if spool.pending:
            self.wake()

    def wake(self) -> None:
        """There are new entries."""
        self._empty.clear()
        self._more.set()

    async def wait_empty(self) -> None:
        """Wait until everything is settled. New entries are not held back any more."""
        self._hurry = True
        await self._empty.wait()

    async def wait_settled(self, count: int) -> None:
        """Wait until the first `count` entries are settled, whatever comes behind them."""
        if self.settled < count:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((count, future))
            await future

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            await self._more.wait()
            self._more.clear()
            if not self._hurry:
                await asyncio.sleep(LINGER_SECONDS)
            while batch := await self._call(lambda: self._spool.peek(self._most)):
                pause = await self._deliver(batch)
                if pause > 0:
                    await asyncio.sleep(pause)
            if not self._more.is_set():
                self._empty.set()

    async def _deliver(self, batch: list[Entry]) -> float:
        """Try once; return how long to wait before the next try."""
        try:
            if batch[0].closes:
                await self._close(batch[0].stream)
            else:
                events = [entry.event() for entry in batch]
                await self._backend.append(batch[0].stream, events, seconds=ATTEMPT_SECONDS, owner_epoch=batch[0].e)
        except (Unauthorized, Forbidden) as exc:
            self._trouble(exc)
            return REFUSED_TOKEN_SECONDS
        except (LogError, RateLimited) as exc:
            if not exc.retryable:
                return await self._refuse(batch, exc)
            self._trouble(exc)
            pause = pause_before(self._attempt, base=0.2, cap=5.0)
            self._attempt += 1
            return pause
        except TailraceError as exc:
            return await self._refuse(batch, exc)
        await self._settled(len(batch))
        return 0.0

    async def _close(self, stream: StreamName) -> None:
        # A stream that expired or was deleted meanwhile has ended too.
        with contextlib.suppress(NotFound):
            await self._backend.close(stream)

    async def _refuse(self, batch: list[Entry], error: TailraceError) -> float:
        """Find the entry that is refused by going one by one; drop that one."""
        if len(batch) > 1:
            self._most = 1
            return 0.0
        self._on_refused(batch[0], error)
        await self._settled(1)
        return 0.0

    def _log_refusal(self, entry: Entry, error: TailraceError) -> None:
        """Once for a stream: one that has ended, or is another producer's, refuses all that is left."""
        if entry.stream != self._complained:
            self._complained = entry.stream
            log.error("events are refused and dropped", extra={"stream": entry.stream, "code": error.code})

    async def _settled(self, count: int) -> None:
        await self._call(lambda: self._spool.done(count))
        self.settled += count
        for _, future in (each for each in self._waiting if each[0] <= self.settled and not each[1].done()):
            future.set_result(None)
        self._waiting = [each for each in self._waiting if not each[1].done()]
        self._most = min(BATCH_EVENTS, self._most * 2)
        if self._attempt:
            self._attempt = 0
            if self._on_trouble is not None:
                self._on_trouble(None)

    def _trouble(self, error: TailraceError) -> None:
        if self._attempt == 0 and self._on_trouble is not None:
            self._on_trouble(error)
        self._attempt = max(self._attempt, 1)

    async def _call(self, function: Callable[[], T]) -> T:
        return await asyncio.to_thread(function) if self._threaded else function()


class Emitting:
    """What `Tailrace.emit` needs: an inbox that never waits, a spool behind it, and its delivery.

    `emit` may be called from any thread, everything else from the loop it was made on.
    """

    def __init__(self, backend: Backend, folder: Path | None, target: str) -> None:
        self._backend = backend
        self._folder = folder
        self._target = target
        self._uid_prefix = secrets.token_hex(8)
        self._count = 0
        self._taken = 0
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._inbox: list[Entry] = []
        self._storing: list[Entry] = []
        """On their way from there into the spool."""
        self._inbox_bytes = 0
        self._full = False
        self._skipped: dict[tuple[StreamName, int | None], int] = {}
        self.refused = 0
        """How many events found no room so far."""
        self._arrived = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._deliveries: list[Delivery] = []
        self._spools: list[Spool] = []
        self._own: SpoolFile | None = None
        self._opening: asyncio.Future[None] | None = None
        self._opened = asyncio.Event()
        self._left: set[tuple[StreamName, int | None]] = set()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="tailrace-emit")

    def emit(self, stream: StreamName, event: Event, owner_epoch: int | None = None) -> bool:
        """Take an event. False: there is no room; it is counted, and the count is announced in its stream.

        Raises:
            UsageError: events cannot be delivered any more.
        """
        if self._task.done():
            raise UsageError("events are not delivered any more; see the log") from self._ended()
        with self._lock:
            taken = self._offer(stream, event, owner_epoch)
        if taken:
            if threading.get_ident() == self._thread:
                self._arrived.set()
            else:
                self._loop.call_soon_threadsafe(self._arrived.set)
        return taken

    def _offer(self, stream: StreamName, event: Event, owner_epoch: int | None) -> bool:
        place = (stream, owner_epoch)
        if self._full or self._inbox_bytes + len(event.data) + OVERHEAD_BYTES > INBOX_BYTES:
            if not self._skipped:
                log.error("the spool is full: events are skipped, and counted", extra={"stream": stream})
            self._skipped[place] = self._skipped.get(place, 0) + 1
            self.refused += 1
            return False
        skipped = self._skipped.pop(place, 0)
        if skipped:
            self._take(stream, _announcement(skipped), owner_epoch)
        self._take(stream, event, owner_epoch)
        return True

    def _take(self, stream: StreamName, event: Event, owner_epoch: int | None) -> None:
        if event.uid is None:
            self._count += 1
            event = replace(event, uid=f"{self._uid_prefix}-{self._count}")
        self._inbox.append(Entry.of(stream, event, owner_epoch))
        self._inbox_bytes += len(event.data) + OVERHEAD_BYTES
        self._taken += 1
        self._quiet.clear()

    async def flush(self, timeout_seconds: float | None) -> bool:
        """Wait until everything emitted is settled."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._until_ended(self._quiet.wait())
                for delivery in self._deliveries:
                    await self._until_ended(delivery.wait_empty())
        except TimeoutError:
            return False
        return not self._task.done()

    async def wait_settled(self, stream: StreamName, owner_epoch: int | None = None) -> bool:
        """Wait until what was emitted to one stream so far is settled, whatever others emit. False: it never will be.

        What did not fit is told in the stream first.
        """
        while True:
            skipped = (stream, owner_epoch) in self._skipped
            if skipped or not self._deliveries:
                await self._until_ended(self._quiet.wait())
            if self._deliveries:
                await self._until_ended(self._deliveries[0].wait_settled(self._taken))
            if not skipped or self._task.done():
                return not self._task.done()

    async def wait_recovered(self) -> set[tuple[StreamName, int | None]]:
        """Wait until what others left in the folder is settled; answer what it was about, as (stream, owner's epoch).

        Not all of it need be delivered: see rule 2.
        """
        await self._until_ended(self._opened.wait())
        for delivery in self._deliveries[1:]:
            await self._until_ended(delivery.wait_empty())
        return set() if self._task.done() else self._left

    async def aclose(self, flush_seconds: float) -> None:
        """Deliver for a while, then stop; a file keeps the rest, and without one the loss is logged."""
        try:
            if flush_seconds > 0:
                await self.flush(flush_seconds)
        finally:
            self._task.cancel()
            await asyncio.wait([self._task])
            if (error := self._ended()) is not None:
                log.error("emitted events are not delivered any more", exc_info=error)
            if self._opening is not None:
                await asyncio.wait([self._opening])
                self._opening.exception()
            await asyncio.to_thread(self._keep)

    def _keep(self) -> None:
        """Put what was taken and is not in the spool yet into its file, and let go of all files."""
        with self._lock:
            for (stream, epoch), count in self._skipped.items():
                self._take(stream, _announcement(count), epoch)
            self._skipped.clear()
            left, self._inbox, self._storing = self._storing + self._inbox, [], []
        try:
            if left and self._folder is not None:
                if self._own is None:
                    self._own = SpoolFile.create(self._folder, "emit", self._target)
                    self._spools.append(self._own)
                # What a cancelled call stores all the same is there twice, with the same uids.
                self._own.put(left)
            in_memory = sum(each.pending for each in self._spools if isinstance(each, MemorySpool))
            if self._folder is None and (left or in_memory):
                log.error("emitted events are lost: no folder keeps them", extra={"count": len(left) + in_memory})
        except (ConfigError, WouldBlock) as exc:
            log.error("events are lost: they cannot be kept", extra={"count": len(left), "reason": str(exc)})
        finally:
            for spool in self._spools:
                spool.close()

    def _ended(self) -> BaseException | None:
        return None if self._task.cancelled() else self._task.exception()

    async def _until_ended(self, waiting: Awaitable[object]) -> None:
        """Wait for something, but not longer than deliveries are made at all."""
        waiter = asyncio.ensure_future(waiting)
        try:
            await asyncio.wait([waiter, self._task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()

    async def _run(self) -> None:
        """Own the deliveries: of our own spool, and of files that others left behind."""
        async with asyncio.TaskGroup() as group:
            spool = await self._open(group)
            mine = Delivery(self._backend, spool, threaded=self._folder is not None)
            self._deliveries.insert(0, mine)
            self._opened.set()
            group.create_task(mine.run())
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                await self._store(spool, mine)
                with self._lock:
                    for (stream, epoch), count in self._skipped.items():
                        self._take(stream, _announcement(count), epoch)
                    self._skipped.clear()
                    if not self._inbox:
                        self._quiet.set()
                    else:
                        self._arrived.set()

    async def _store(self, spool: Spool, delivery: Delivery) -> None:
        """Move the inbox into the spool, when that has room; until then nothing more is taken in."""
        with self._lock:
            self._storing, self._inbox, self._inbox_bytes = self._inbox, [], 0
        while self._storing:
            try:
                part = self._storing[:STORE_ENTRIES]
                if self._folder is not None:
                    await asyncio.to_thread(spool.put, part)
                else:
                    spool.put(part)
                del self._storing[: len(part)]
                # At once: what is behind may find no room before something was delivered.
                delivery.wake()
            except WouldBlock:
                self._full = True
                await asyncio.sleep(FULL_SECONDS)
        self._full = False

    async def _open(self, group: asyncio.TaskGroup) -> Spool:
        folder = self._folder
        if folder is None:
            spool: Spool = MemorySpool()
            self._spools.append(spool)
            return spool
        # Not cut off in the middle: files that nobody knows of would stay locked until this process ends.
        self._opening = asyncio.ensure_future(asyncio.to_thread(self._open_files, folder))
        await asyncio.shield(self._opening)
        assert self._own is not None  # noqa: S101 - just made
        for orphan in self._spools[:-1]:
            delivery = Delivery(self._backend, orphan, threaded=True)
            self._deliveries.append(delivery)
            group.create_task(delivery.run())
        return self._own

    def _open_files(self, folder: Path) -> None:
        for orphan in orphans(folder, self._target):
            self._spools.append(orphan)
            self._left |= orphan.places()
        self._own = SpoolFile.create(folder, "emit", self._target)
        self._spools.append(self._own)


def _announcement(count: int) -> Event:
    return Event(SKIPPED, encode({"count": count, "reason": "the spool was full"}, max_bytes=1_024))
