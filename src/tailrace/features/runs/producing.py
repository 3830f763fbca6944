"""`Runs`: code that is a run. Its events leave without waiting, it is known to live, and it learns when to stop.

Rules of this file
1. What runs is never held up, and never fails, because Redis, the database or the gateway is away: only to begin needs
   them. Its end is told as soon as they are back, for as long as this object lives.
2. One task renews the leases of all runs of the process. An outage of the renewal ends no run.
3. The end: see ending.py. A process that ends waits a while for ends that nobody could be told; with a folder, the next
   one on it tells what is left, and the run is held for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from tailrace.client.backend import Backend, pause_before
from tailrace.client.client import target_of
from tailrace.client.credentials import Token
from tailrace.client.emitting import Emitting
from tailrace.client.remote import RemoteLog
from tailrace.client.spool import SpoolFile
from tailrace.errors import AlreadyClosed, ConfigError, TailraceError
from tailrace.features.runs.active import CURRENT, ActiveRun
from tailrace.features.runs.backend import Claim, LeaseState, RunBackend
from tailrace.features.runs.ending import Ends
from tailrace.features.runs.model import Run
from tailrace.features.runs.recovering import HOLD_SECONDS, tell_left
from tailrace.features.runs.remote import HttpRuns
from tailrace.features.runs.steps import take_back

__all__ = ["END_SECONDS", "Runs"]

log = logging.getLogger("tailrace.runs")

T = TypeVar("T")
RENEW_SECONDS = 0.4
CALL_SECONDS = 10.0
END_SECONDS = 30.0
LAST_CALL_SECONDS = 2.0
LAST_FLUSH_SECONDS = 0.5


class Runs:
    """The producing side of runs, one for a process.

    Args:
        backend: where runs are kept.
        log: the way to their events.
        spool: folder in which events wait that are not delivered yet; without one they wait in memory.
        target: names the log in that folder.
        spool_bytes: most that may wait; without: 16 MiB in memory, 256 MiB in a folder.
        begin_seconds: how long the beginning of a run is tried.
        end_seconds: how long `aclose` waits for ends of runs that nobody could be told: the backend is away.
        hold_seconds: how long an ended run is held for what this process left in the folder when it ended.

    Belongs to one event loop. Use it as a context manager, or call `aclose`.
    """

    def __init__(
        self,
        backend: RunBackend,
        log: Backend,
        *,
        spool: Path | None = None,
        target: str = "here",
        spool_bytes: int | None = None,
        begin_seconds: float = CALL_SECONDS,
        end_seconds: float = END_SECONDS,
        hold_seconds: float = HOLD_SECONDS,
    ) -> None:
        self.backend = backend
        self._log = log
        self._spool = spool
        self._target = target
        self._spool_bytes = spool_bytes
        self._end_seconds = end_seconds
        self._begin_seconds = begin_seconds
        self._hold_seconds = hold_seconds if spool is not None else 0.0
        self._emitting: Emitting | None = None
        self._held: dict[str, ActiveRun] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._renewing: asyncio.Task[None] | None = None
        self._closed = False
        self._late = 0
        self._ends = Ends(backend, hold_seconds=self._hold_seconds, own=self._own, release=self._release)

    @classmethod
    def connect(
        cls,
        url: str | None = None,
        *,
        token: Token | None = None,
        spool: Path | str | None = None,
        spool_bytes: int | None = None,
        end_seconds: float = END_SECONDS,
    ) -> Runs:
        """Runs that a gateway keeps.

        Args:
            url: of the gateway; without: `TAILRACE_URL`.
            token: a JWT that may write runs, or a function that answers one; without: `TAILRACE_TOKEN`.
            spool, spool_bytes, end_seconds: see above.

        Raises:
            ConfigError: no address, or not a gateway's.
        """
        url = url or os.environ.get("TAILRACE_URL")
        if not url or not url.lower().startswith(("http://", "https://")):
            raise ConfigError("runs need a gateway: give its http(s) address, or set TAILRACE_URL")
        remote = RemoteLog(url, os.environ.get("TAILRACE_TOKEN") if token is None else token)
        return cls(
            HttpRuns(url, None, remote=remote),
            remote,
            spool=Path(spool) if spool else None,
            target=target_of(url),
            spool_bytes=spool_bytes,
            end_seconds=end_seconds,
        )

    @property
    def refused_ends(self) -> int:
        """How many ends came too late: the run was lost, or another's, or had ended in another way. Each is logged."""
        return self._ends.refused + self._late

    # -- being a run -----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(
        self,
        *,
        kind: str = "run",
        title: str = "",
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> AsyncIterator[ActiveRun]:
        """Be a run: `async with runs.open(title="nightly") as run:`. It ends as the block ends.

        A cancel of the run cancels this task; outside of the block that is a `RunCancelled`. An exception ends the run
        as failed and goes on.

        Args: as `RunBackend.create`.

        Raises:
            LogUnavailable, DatabaseUnavailable: it could not begin. RunCancelled: it was cancelled.
            Fenced: it was lost meanwhile, or taken over.
        """
        run = await self.create(kind=kind, title=title, owner=owner, metadata=metadata, run_id=run_id)
        async with self.claim(run.id) as active:
            yield active

    @asynccontextmanager
    async def claim(self, run_id: str) -> AsyncIterator[ActiveRun]:
        """Be a run that was created before, or whose producer died. As `open`.

        Raises:
            RunNotFound, RunEnded. Conflict: another producer has it and lives.
        """
        active = await self.begin(run_id)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine
        interrupted = False

        def interrupt() -> None:
            nonlocal interrupted
            interrupted = task.cancel()

        active.on_stop = interrupt
        token = CURRENT.set(active)
        error: BaseException | None = None
        try:
            yield active
        except BaseException as exc:
            error = exc
        finally:
            take_back(CURRENT, token)
            active.on_stop = None
        if interrupted:
            error = await _settle_interrupt(task, active, error)
        await self.end(active, error)
        if error is not None:
            raise error
        if active.fenced:
            raise active.why_stopped()

    async def create(self, **given: Any) -> Run:
        """Make a queued run, for whoever claims it. Args: as `RunBackend.create`."""
        if given.get("run_id") is None:
            # With an id of our own it may be repeated.
            given["run_id"] = secrets.token_hex(16)
        return await self._begin_patiently(lambda: self.backend.create(**given))

    # -- the same by hand ------------------------------------------------------------------------------------

    async def begin(self, run_id: str) -> ActiveRun:
        """Claim a run, and keep its lease until `end`. Raises: as `claim`."""
        if self._closed:
            raise AlreadyClosed("the runs were closed")
        producer = secrets.token_hex(8)
        claim: Claim = await self._begin_patiently(lambda: self.backend.begin(run_id, producer=producer))
        active = ActiveRun(claim, self._deliver())
        self._held[active.id] = active
        if self._renewing is None:
            self._renewing = self._own(self._renew())
        active.emit("run.started", {"kind": claim.run.kind, "title": claim.run.title, "epoch": claim.epoch})
        return active

    def _deliver(self) -> Emitting:
        """Begin to deliver, what others left in the folder too."""
        if self._emitting is None:
            self._emitting = Emitting(self._log, self._spool, self._target, max_bytes=self._spool_bytes)
            if self._spool is not None:
                self._own(self._emitting.wait_recovered(self._tell_left))
        return self._emitting

    async def _tell_left(self, file: SpoolFile) -> None:
        self._late += await tell_left(self.backend, file)

    async def end(self, active: ActiveRun, error: BaseException | None = None) -> None:
        """End a run: completed, or as the error says. Waits 2 s for its events and 3 s for the backend at the most;
        both then go on by themselves. Cancelled, it goes on by itself at once."""
        assert self._emitting is not None  # noqa: S101 - `begin` made it
        await asyncio.shield(self._own(self._ends.tell(active, error, self._emitting)))

    def _release(self, active: ActiveRun) -> None:
        if self._held.get(active.id) is active:
            del self._held[active.id]

    # -- leases ----------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        silent = False
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            held = dict(self._held)
            if not held:
                continue
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    states = await self._renew_all(held)
            except (TailraceError, TimeoutError) as exc:
                if not silent:
                    log.warning("leases of runs are not renewed for now", extra={"error": str(exc)})
                silent = True
                continue
            silent = False
            for run_id, active in held.items():
                state = states.get(run_id)
                if state is not None and (state.cancel or state.fenced):
                    active.stop(fenced=state.fenced)

    async def _renew_all(self, held: Mapping[str, ActiveRun]) -> dict[str, LeaseState]:
        states: dict[str, LeaseState] = {}
        for kept, hold in ((False, 0.0), (True, self._hold_seconds)):
            some = [(each.id, each.epoch) for each in held.values() if self._ends.keeps(each) is kept]
            if some:
                states |= await self.backend.renew(some, hold_seconds=hold)
        return states

    async def _hold(self) -> None:
        """Keep the runs whose ends are left on the disk, if anybody can be asked for that."""
        kept = {run_id: active for run_id, active in self._held.items() if self._ends.keeps(active)}
        if kept:
            with contextlib.suppress(TailraceError, TimeoutError):
                async with asyncio.timeout(LAST_CALL_SECONDS):
                    await self._renew_all(kept)

    # -- life ------------------------------------------------------------------------------------------------

    async def aclose(self, *, flush_seconds: float = 5.0) -> None:
        """Wait a while for what still has to be told, then give everything back.

        Before that it waits for `end_seconds` where nobody could be told how a run ended. A run that is still open ends
        as lost. What was not delivered or told stays in the spool folder; the next process on it delivers it, and ends
        the runs that have ended. Without a folder it is lost: that is logged; missing events are told in the stream.
        Cancelled: it waits for nothing more, and gives back everything all the same.
        """
        if self._closed:
            return
        self._closed = True
        left = 0.0
        try:
            await self._ends.wait_told(self._end_seconds)
            ending = self._tasks - {self._renewing}
            if ending:
                await asyncio.wait(ending, timeout=flush_seconds)
            left = flush_seconds if not ending else LAST_FLUSH_SECONDS
        finally:
            await self._give_back(left)

    async def _give_back(self, flush_seconds: float) -> None:
        self._ends.say_left()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._hold()
        finally:
            try:
                if self._emitting is not None:
                    await self._emitting.aclose(flush_seconds)
            finally:
                await self._log.aclose()
                await self.backend.aclose()

    async def recover(self) -> None:
        """Begin to deliver and tell what others left in the folder; otherwise the first run begins that."""
        if self._spool is not None:
            self._deliver()

    async def __aenter__(self) -> Runs:
        await self.recover()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _begin_patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        loop = asyncio.get_running_loop()
        end, attempt = loop.time() + self._begin_seconds, 0
        while True:
            try:
                return await call()
            except TailraceError as exc:
                pause = pause_before(attempt, cap=2.0)
                if not exc.retryable or loop.time() + pause >= end:
                    raise
                attempt += 1
                await asyncio.sleep(pause)

    def _own(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work, name="tailrace-runs")
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a defect in producing runs", exc_info=error)


async def _settle_interrupt(
    task: asyncio.Task[Any], active: ActiveRun, error: BaseException | None
) -> BaseException | None:
    """We cancelled the task: take that back, and say what it means."""
    task.uncancel()
    if error is None:
        # The block ended before the cancellation reached it: let it come now, and swallow it.
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if task.cancelling():
                raise
        return None
    return active.why_stopped() if isinstance(error, asyncio.CancelledError) and not task.cancelling() else error
