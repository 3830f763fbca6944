"""What was emitted on its way to the log: an inbox that never waits, a spool, and who delivers it."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
from msgspec.structs import replace

from tailrace.client.backend import Backend
from tailrace.client.delivery import Delivery
from tailrace.client.spool import FILE_BYTES, MEMORY_BYTES, Entry, MemorySpool, Spool, SpoolFile, orphans
from tailrace.core.codec import encode
from tailrace.core.event import SKIPPED, Event
from tailrace.core.names import StreamName
from tailrace.errors import ConfigError, UsageError, WouldBlock

__all__ = ["Emitting"]

log = logging.getLogger("tailrace.client")

INBOX_BYTES = 16_777_216
OVERHEAD_BYTES = 160
STORE_ENTRIES = 100
FULL_SECONDS = 0.2


class Emitting:
    """What `Tailrace.emit` needs: an inbox that never waits, a spool behind it, and its delivery.

    `emit` may be called from any thread, everything else from the loop it was made on.

    Args:
        backend: the log.
        folder: where the spool is; None: in memory.
        target: names the log in the folder.
        max_bytes: what may wait there; without: 16 MiB in memory, 256 MiB in a folder. An event of more than half of
            it is refused.
    """

    def __init__(self, backend: Backend, folder: Path | None, target: str, *, max_bytes: int | None = None) -> None:
        self._backend = backend
        self._folder = folder
        self._target = target
        self._max_bytes = max_bytes or (MEMORY_BYTES if folder is None else FILE_BYTES)
        self._max_inbox = min(INBOX_BYTES, max_bytes // 2) if max_bytes else INBOX_BYTES
        self._uid_prefix = secrets.token_hex(8)
        self._count = 0
        self._taken = 0
        self._pid = os.getpid()
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
        self._notes: dict[str, str | None] = {}
        self._noting: dict[str, str | None] = {}
        """Behind those on their way."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="tailrace-emit")

    def emit(self, stream: StreamName, event: Event, owner_epoch: int | None = None) -> bool:
        """Take an event. False: there is no room; it is counted, and the count is announced in its stream. In a process
        that was forked from this one it is always False.

        Raises:
            UsageError: events cannot be delivered any more.
        """
        if not self.here:
            return False  # nobody delivers here; even the lock may be held by a thread that is gone
        if self._task.done():
            raise UsageError("events are not delivered any more; see the log") from self._ended()
        with self._lock:
            taken = self._offer(stream, event, owner_epoch)
        # One that was not taken has to be told, too.
        if threading.get_ident() == self._thread:
            self._arrived.set()
        else:
            self._loop.call_soon_threadsafe(self._arrived.set)
        return taken

    @property
    def here(self) -> bool:
        """Whether this is the process that it was made in, and not one that was forked from it."""
        return os.getpid() == self._pid

    def _offer(self, stream: StreamName, event: Event, owner_epoch: int | None) -> bool:
        place = (stream, owner_epoch)
        if self._full or self._inbox_bytes + len(event.data) + OVERHEAD_BYTES > self._max_inbox:
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

    def note(self, key: str, text: str | None) -> None:
        """Keep a fact in the folder, behind what was emitted before; None: forget it. Without a folder it is not kept.

        Who delivers what this process left finds it in the file, see `wait_recovered`.
        """
        if self._folder is not None:
            with self._lock:
                self._notes[key] = text
            self._arrived.set()

    async def wait_recovered(self, then: Callable[[SpoolFile], Awaitable[None]]) -> None:
        """Wait until what others left in the folder is settled, and do something with each file that it was in.

        Not all of it need be delivered: what never can be is dropped. A file does not wait for others.
        """
        await self._until_ended(self._opened.wait())
        left = zip(self._deliveries[1:], self._spools[:-1], strict=False)
        await asyncio.gather(*[self._recover(delivery, spool, then) for delivery, spool in left])

    async def _recover(self, delivery: Delivery, spool: Spool, then: Callable[[SpoolFile], Awaitable[None]]) -> None:
        await self._until_ended(delivery.wait_empty())
        if isinstance(spool, SpoolFile) and not self._task.done():
            await then(spool)

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
            notes = self._noting | self._notes
        try:
            if (left or any(notes.values())) and self._folder is not None:
                if self._own is None:
                    self._own = SpoolFile.create(self._folder, "emit", self._target, max_bytes=self._max_bytes)
                    self._spools.append(self._own)
                self._keep_in(self._own, left)
            if self._own is not None:
                _write_notes(self._own, notes)
            in_memory = sum(each.pending for each in self._spools if isinstance(each, MemorySpool))
            if self._folder is None and (left or in_memory):
                log.error("emitted events are lost: no folder keeps them", extra={"count": len(left) + in_memory})
        except (ConfigError, WouldBlock) as exc:
            log.error("events are lost: they cannot be kept", extra={"count": len(left), "reason": str(exc)})
        finally:
            for spool in self._spools:
                spool.close()

    def _keep_in(self, spool: SpoolFile, left: list[Entry]) -> None:
        """Put the last events into the file; what finds no room is counted, and told behind the others."""
        # What a cancelled call stores all the same is there twice, with the same uids.
        for at in range(0, len(left), STORE_ENTRIES):
            try:
                spool.put(left[at : at + STORE_ENTRIES])
            except WouldBlock as exc:
                lost: dict[tuple[StreamName, int | None], int] = {}
                for entry in left[at:]:
                    place = (entry.stream, entry.e)
                    lost[place] = lost.get(place, 0) + _worth(entry)
                extra = {"count": sum(lost.values()), "reason": str(exc)}
                log.error("events are lost: they cannot be kept", extra=extra)
                told = [
                    (place, replace(_announcement(count), uid=secrets.token_hex(8))) for place, count in lost.items()
                ]
                spool.finish([Entry.of(stream, event, epoch) for (stream, epoch), event in told])
                return

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
            self._noting, self._notes = self._notes, {}
        most = STORE_ENTRIES
        while self._storing:
            try:
                part = self._storing[:most]
                if self._folder is not None:
                    await asyncio.to_thread(spool.put, part)
                else:
                    spool.put(part)
                del self._storing[: len(part)]
                most = STORE_ENTRIES
                # At once: what is behind may find no room before something was delivered.
                delivery.wake()
            except WouldBlock:
                self._full = True
                if most > 1:
                    most //= 2
                else:
                    await asyncio.sleep(FULL_SECONDS)
        self._full = False
        if self._noting and self._own is not None:
            try:
                await asyncio.to_thread(_write_notes, self._own, self._noting)
            except WouldBlock as exc:
                log.error("a note cannot be kept", extra={"reason": str(exc)})
            self._noting = {}

    async def _open(self, group: asyncio.TaskGroup) -> Spool:
        folder = self._folder
        if folder is None:
            spool: Spool = MemorySpool(self._max_bytes)
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
        self._own = SpoolFile.create(folder, "emit", self._target, max_bytes=self._max_bytes)
        self._spools.append(self._own)


def _write_notes(spool: SpoolFile, notes: Mapping[str, str | None]) -> None:
    for key, text in notes.items():
        spool.note(key, text)


def _worth(entry: Entry) -> int:
    """How many events are missing without this one."""
    told = msgspec.json.decode(entry.d) if entry.t == SKIPPED else None
    return int(told["count"]) if isinstance(told, dict) and isinstance(told.get("count"), int) else 1


def _announcement(count: int) -> Event:
    return Event(SKIPPED, encode({"count": count, "reason": "the spool was full"}, max_bytes=1_024))
