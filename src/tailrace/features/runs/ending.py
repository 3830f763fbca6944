"""The ends of runs: told, kept on the disk until that is done, and what becomes of one that comes too late.

Rules of this file
1. An end is noted in the spool folder behind the run's events, told, and forgotten when the run's stream has it. What a
   process leaves there is told by the next one on the folder (recovering.py).
2. The status at once, then what still waits in the spool, then the terminal event. Until then the lease is kept: nobody
   ends the run otherwise, or its stream before.
3. What may succeed later is tried again with back-off, a refused token too: it may be renewed.
4. A result that cannot be kept does not keep its run from ending: that has failed, and says why.
5. Lost, taken over, ended in another way: that was told, and stays so. An end that comes too late is logged, counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from tailrace.client.backend import pause_before
from tailrace.client.emitting import Emitting
from tailrace.client.problems import is_elsewhere
from tailrace.errors import (
    Conflict,
    Forbidden,
    Malformed,
    NotFound,
    RequestError,
    TailraceError,
    TooLarge,
    Unauthorized,
)
from tailrace.features.runs.active import ActiveRun
from tailrace.features.runs.backend import RunBackend
from tailrace.features.runs.model import Run, RunStatus, check_result
from tailrace.features.runs.steps import RunCancelled, error_text

__all__ = ["Ends", "RunEnd", "log_refused", "outcome_of", "passes"]

log = logging.getLogger("tailrace.runs")

FLUSH_SECONDS = 2.0
"""How long the end of a run waits for its events before it is told without them."""
FIRST_SECONDS = 3.0
"""How long the code is held up by the first attempt to tell it."""
PAUSE_SECONDS = 5.0
NAMED = 10


class RunEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended, as its code said it."""

    run: str
    epoch: int
    status: RunStatus
    error: str | None = None
    result: Any = None

    @classmethod
    def of(cls, active: ActiveRun, error: BaseException | None) -> RunEnd:
        """How a run ends whose code ended so."""
        status, text = outcome_of(error)
        result = active.result if status is RunStatus.COMPLETED else None
        try:
            # As it will be read: ending it again must be the same.
            result = check_result(result)
        except RequestError as exc:
            status, text, result = RunStatus.FAILED, exc.detail, None
        return cls(run=active.id, epoch=active.epoch, status=status, error=text, result=result)

    @classmethod
    def noted(cls, key: str, text: str) -> RunEnd | None:
        """Read a note; None: it is about something else."""
        if not key.startswith("end:"):
            return None
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError:
            return None

    @property
    def key(self) -> str:
        """What its note is called."""
        return f"end:{self.run}:{self.epoch}"

    def note(self) -> str:
        """The note."""
        return msgspec.json.encode(self).decode()

    async def tell(self, backend: RunBackend, *, seal: bool = True, hold_seconds: float = 0.0) -> Run:
        """Tell it. Raises: as `RunBackend.finish`."""
        hold = 0.0 if seal else hold_seconds
        status, error = self.status, self.error
        try:
            return await backend.finish(
                self.run, self.epoch, status, error=error, result=self.result, seal=seal, hold_seconds=hold
            )
        except (Malformed, TooLarge) as exc:
            if self.result is None or is_elsewhere(exc):
                raise
            # A gateway may take less than we do. It refuses the same again: twice stays the same as once.
            if status is RunStatus.COMPLETED:
                status, error = RunStatus.FAILED, f"its result was refused: {exc}"
            return await backend.finish(self.run, self.epoch, status, error=error, seal=seal, hold_seconds=hold)


class Ends:
    """The ends of one process's runs.

    Args:
        backend: who is told.
        hold_seconds: how long a run is kept for what this process leaves in its folder; 0: it has none.
        own: runs work as a task that ends with the process's runs.
        release: a run is over.
    """

    def __init__(
        self,
        backend: RunBackend,
        *,
        hold_seconds: float,
        own: Callable[[Coroutine[Any, Any, None]], object],
        release: Callable[[ActiveRun], None],
    ) -> None:
        self.refused = 0
        """How many came too late."""
        self._backend = backend
        self._hold_seconds = hold_seconds
        self._own = own
        self._release = release
        self._untold: dict[ActiveRun, asyncio.Future[None]] = {}
        """Resolved when its status is known, or never will be."""
        self._kept: set[ActiveRun] = set()

    def keeps(self, active: ActiveRun) -> bool:
        """Whether a run's end is on the disk, and nobody else could be told."""
        return active in self._kept

    async def tell(self, active: ActiveRun, error: BaseException | None, emitting: Emitting) -> None:
        """See `Runs.end`."""
        active.close()
        end = RunEnd.of(active, error)
        if active.fenced:
            self._refuse(active, end, emitting, active.why_stopped())
            return
        self._untold[active] = asyncio.get_running_loop().create_future()
        emitting.note(end.key, end.note())
        flushed = await _flushed(active, emitting)
        try:
            async with asyncio.timeout(FIRST_SECONDS):
                await end.tell(self._backend, seal=flushed, hold_seconds=self._hold_seconds)
        except (TailraceError, TimeoutError) as exc:
            if isinstance(exc, TailraceError) and not passes(exc):
                self._refuse(active, end, emitting, exc)
                return
            log.warning("the end of a run is told later", extra={"run": active.id, "error": str(exc)})
            if self._hold_seconds > 0:
                self._kept.add(active)
        else:
            self._told(active)
            if flushed:
                self._over(active, end, emitting)
                return
        self._own(self._tell_later(active, end, emitting))

    async def _tell_later(self, active: ActiveRun, end: RunEnd, emitting: Emitting) -> None:
        attempt = 0
        while True:
            try:
                if active in self._untold:
                    await end.tell(self._backend, seal=False, hold_seconds=self._hold_seconds)
                    self._told(active)
                await emitting.wait_settled(active.stream, active.epoch)
                if (await end.tell(self._backend)).sealed:
                    break
            except TailraceError as exc:
                if not passes(exc):
                    self._refuse(active, end, emitting, exc)
                    return
            await asyncio.sleep(pause_before(attempt, cap=PAUSE_SECONDS))
            attempt += 1
        self._over(active, end, emitting)

    def _told(self, active: ActiveRun) -> None:
        self._kept.discard(active)
        if (waiting := self._untold.pop(active, None)) is not None and not waiting.done():
            waiting.set_result(None)

    def _refuse(self, active: ActiveRun, end: RunEnd, emitting: Emitting, error: TailraceError) -> None:
        self.refused += 1
        log_refused(end, error)
        self._told(active)
        self._over(active, end, emitting)

    def _over(self, active: ActiveRun, end: RunEnd, emitting: Emitting) -> None:
        emitting.note(end.key, None)
        self._release(active)

    async def wait_told(self, seconds: float) -> None:
        """Wait for those that nobody knows."""
        if self._untold and seconds > 0:
            await asyncio.wait(list(self._untold.values()), timeout=seconds)

    def say_left(self) -> None:
        """Log which of them nobody was told."""
        if self._untold and self._hold_seconds > 0:
            log.warning("ends of runs are kept: the next process on the folder tells them", extra=self._left())
        elif self._untold:
            log.error("ends of runs are lost: they could not be told, and no folder keeps them", extra=self._left())

    def _left(self) -> dict[str, Any]:
        return {"count": len(self._untold), "runs": [each.id for each in self._untold][:NAMED]}


async def _flushed(active: ActiveRun, emitting: Emitting) -> bool:
    try:
        async with asyncio.timeout(FLUSH_SECONDS):
            return await emitting.wait_settled(active.stream, active.epoch)
    except TimeoutError:
        return False


def passes(error: TailraceError) -> bool:
    """Whether the same may succeed later."""
    return error.retryable or isinstance(error, (Unauthorized, Forbidden)) or is_elsewhere(error)


def log_refused(end: RunEnd, error: TailraceError) -> None:
    """Say that a run did not end as its code did: the only trace of how that ended."""
    expected = isinstance(error, (Conflict, NotFound))
    extra = {"run": end.run, "epoch": end.epoch, "status": end.status.value, "code": error.code}
    log.log(logging.WARNING if expected else logging.ERROR, "a run did not end as its code did", extra=extra)


def outcome_of(error: BaseException | None) -> tuple[RunStatus, str | None]:
    """How a run ends whose code ended so."""
    if error is None:
        return RunStatus.COMPLETED, None
    if isinstance(error, RunCancelled):
        return RunStatus.CANCELLED, None
    if isinstance(error, (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit)):
        return RunStatus.CANCELLED, f"its code was stopped: {type(error).__name__}"
    return RunStatus.FAILED, error_text(error)
