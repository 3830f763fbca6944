"""Delivery of what was emitted: in order, once, as soon as the log takes it.

Rules of this file
1. One batch is under way at a time, so that order holds; it is tried with the same uids until it is settled.
2. What may succeed later is tried again for ever, with full jitter. What never can (a closed stream, a bad event) is
   dropped alone, and told to `on_refused`; what comes behind it goes on.
3. A refused token, a function that answers none, and answers that are no gateway's are waited out: the events are
   worth more than the wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from tailrace.client.backend import Backend, pause_before
from tailrace.client.problems import is_elsewhere
from tailrace.client.spool import BATCH_EVENTS, Entry, Spool
from tailrace.core.names import StreamName
from tailrace.errors import ConfigError, Forbidden, LogError, NotFound, RateLimited, TailraceError, Unauthorized

__all__ = ["Delivery"]

log = logging.getLogger("tailrace.client")

T = TypeVar("T")
LINGER_SECONDS = 0.03
"""Entries that come this close together leave together."""
ATTEMPT_SECONDS = 4.0
REFUSED_TOKEN_SECONDS = 5.0


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
        except (Unauthorized, Forbidden, ConfigError) as exc:
            self._trouble(exc)
            return REFUSED_TOKEN_SECONDS
        except (LogError, RateLimited) as exc:
            if not exc.retryable:
                return await self._refuse(batch, exc)
            return self._pause(exc)
        except TailraceError as exc:
            # The database of runs may be away, too.
            if exc.retryable or is_elsewhere(exc):
                return self._pause(exc)
            return await self._refuse(batch, exc)
        await self._settled(len(batch))
        return 0.0

    def _pause(self, error: TailraceError) -> float:
        self._trouble(error)
        pause = pause_before(self._attempt, base=0.2, cap=5.0)
        self._attempt += 1
        return pause

    async def _close(self, stream: StreamName) -> None:
        # A stream that expired or was deleted meanwhile has ended too.
        try:
            await self._backend.close(stream)
        except NotFound as exc:
            if is_elsewhere(exc):
                raise

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
