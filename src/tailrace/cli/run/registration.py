"""The command as a registered run: a row with its status, a lease that says it lives, and a way to cancel it.

Rules of this file
1. It is beside the output, never in its way: a server without runs, or away, leaves the command as it was without.
2. Registered or not is decided when the command has ended: then the run's end closes the stream, else we do.
3. A cancel is SIGTERM at once and SIGKILL after the grace time.
4. How it ended is noted in the spool and told; what nobody could be told in time, the next `tailrace exec` tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shlex
import socket
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tailrace.client.backend import Backend, pause_before
from tailrace.client.remote import RemoteLog
from tailrace.client.spool import SpoolFile
from tailrace.core.names import StreamName
from tailrace.errors import TailraceError
from tailrace.features.runs.backend import RunBackend
from tailrace.features.runs.ending import RunEnd, log_refused, passes
from tailrace.features.runs.model import RunStatus
from tailrace.features.runs.recovering import HOLD_SECONDS, tell_left

__all__ = ["Registration", "RunLabel", "registration_at"]

log = logging.getLogger("tailrace.exec")

RENEW_SECONDS = 0.4
CALL_SECONDS = 5.0
HOLD_CALL_SECONDS = 1.0
FIRST_TRY_SECONDS = 2.0
MAX_TITLE = 200


class RunLabel(msgspec.Struct, frozen=True):
    """What is known of a command before it runs."""

    run_id: str
    title: str
    metadata: dict[str, Any]

    @classmethod
    def of(cls, stream: StreamName, argv: Sequence[str], cwd: str) -> RunLabel | None:
        """The label of a command; None: its stream is not a run's."""
        if stream.kind != "run":
            return None
        title = os.fsencode(shlex.join(argv)).decode("utf-8", "replace").replace("\0", " ")
        return cls(stream.name, title[:MAX_TITLE], {"host": socket.gethostname(), "cwd": cwd})


def registration_at(backend: Backend, label: RunLabel) -> Registration | None:
    """Where the way to the log is a gateway, the run can be registered there."""
    if not isinstance(backend, RemoteLog):
        return None
    from tailrace.features.runs.remote import HttpRuns

    return Registration(HttpRuns("", None, remote=backend), label)


class Registration:
    """One command's run. `keep` runs beside it; `finish` ends it."""

    def __init__(self, backend: RunBackend, label: RunLabel) -> None:
        self.epoch: int | None = None
        """The claim's epoch; None: not registered (yet)."""
        self.cancelled = False
        """Whether somebody asked for its end."""
        self._backend = backend
        self._run_id = label.run_id
        self._label = label
        self._fenced = False
        self._tried = asyncio.Event()

    async def keep(self, on_claim: Callable[[int], None], on_cancel: Callable[[], None]) -> None:
        """Register, then keep the lease until cancelled. Returns where there are no runs."""
        epoch = await self._claim()
        if epoch is not None:
            self.epoch = epoch
            on_claim(epoch)
        self._tried.set()
        if epoch is None:
            return
        while not self._fenced:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    state = (await self._backend.renew([(self._run_id, epoch)])).get(self._run_id)
            except (TailraceError, TimeoutError):
                continue
            if state is None:
                continue
            self._fenced = state.fenced
            if state.cancel and not self.cancelled:
                self.cancelled = True
                on_cancel()
        log.warning("the run was ended without its command", extra={"run": self._run_id})

    async def wait_tried(self) -> None:
        """Wait a moment for the first try to register: a short command is a run too."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_TRY_SECONDS):
                await self._tried.wait()

    def end(self, exit_code: int, signal_name: str | None) -> RunEnd | None:
        """How it ended; None: it is no run of ours (any more)."""
        if self.epoch is None or self._fenced:
            return None
        status, error = _outcome(exit_code, signal_name, cancelled=self.cancelled)
        return RunEnd(run=self._run_id, epoch=self.epoch, status=status, error=error, result={"exit_code": exit_code})

    async def finish(self, end: RunEnd, *, delivered: bool, until: float) -> bool:
        """Say how it ended; try until a time of the loop, once at least. False: nobody could be told."""
        attempt, now = 0, asyncio.get_running_loop().time
        while True:
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    await end.tell(self._backend, seal=delivered, hold_seconds=HOLD_SECONDS)
                return True
            except (TailraceError, TimeoutError) as exc:
                if isinstance(exc, TailraceError) and not passes(exc):
                    log_refused(end, exc)
                    return True
                pause = pause_before(attempt, cap=2.0)
                attempt += 1
                if now() + pause >= until:
                    log.warning("the end of the run could not be told", extra={"run": self._run_id, "error": str(exc)})
                    await self._hold(end)
                    return False
            await asyncio.sleep(pause)

    async def _hold(self, end: RunEnd) -> None:
        """Keep the run for who tells its end."""
        with contextlib.suppress(TailraceError, TimeoutError):
            async with asyncio.timeout(HOLD_CALL_SECONDS):
                await self._backend.renew([(end.run, end.epoch)], hold_seconds=HOLD_SECONDS)

    async def tell_left(self, file: SpoolFile) -> None:
        """Tell how another command ended, now that what it left on the disk is delivered."""
        await tell_left(self._backend, file)

    async def _claim(self) -> int | None:
        producer, attempt = secrets.token_hex(8), 0
        while True:
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    label = self._label
                    await self._backend.create(
                        kind="exec", title=label.title, metadata=label.metadata, run_id=self._run_id
                    )
                    return (await self._backend.begin(self._run_id, producer=producer)).epoch
            except TimeoutError:
                pass
            except TailraceError as exc:
                if not exc.retryable:
                    log.info("the command is not registered as a run", extra={"code": exc.code})
                    return None
            self._tried.set()
            await asyncio.sleep(pause_before(attempt, cap=5.0))
            attempt += 1


def _outcome(exit_code: int, signal_name: str | None, *, cancelled: bool) -> tuple[RunStatus, str | None]:
    if cancelled:
        return RunStatus.CANCELLED, None
    if exit_code == 0:
        return RunStatus.COMPLETED, None
    return RunStatus.FAILED, f"ended by {signal_name}" if signal_name else f"exit code {exit_code}"
