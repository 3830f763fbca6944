"""`RunsSync`: the same for code in threads, without an event loop, also after a fork."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from tailrace.client.credentials import Token
from tailrace.client.engine import Engines
from tailrace.features.runs.active import CURRENT, ActiveRun
from tailrace.features.runs.model import Run, RunStatus
from tailrace.features.runs.producing import END_SECONDS, Runs
from tailrace.features.runs.steps import RunCancelled, take_back

__all__ = ["Interrupt", "RunsSync"]


class RunsSync:
    """The producing side of runs for threads. Its methods may be called from any thread.

    Args:
        make: makes the `Runs`, on this object's own event loop; `RunsSync.connect` is the usual way.

    A process that was forked from one that used it gets its own; runs that were open stay the parent's.
    """

    def __init__(self, make: Callable[[], Runs]) -> None:
        self._engines = Engines(make)

    @classmethod
    def connect(
        cls,
        url: str | None = None,
        *,
        token: Token | None = None,
        spool: Path | str | None = None,
        spool_bytes: int | None = None,
        end_seconds: float = END_SECONDS,
    ) -> RunsSync:
        """See `Runs.connect`."""
        return cls(
            lambda: Runs.connect(url, token=token, spool=spool, spool_bytes=spool_bytes, end_seconds=end_seconds)
        )

    def create(
        self,
        *,
        kind: str = "run",
        title: str = "",
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> Run:
        """See `Runs.create`."""
        engine = self._engines.running()
        made = engine.client.create(kind=kind, title=title, owner=owner, metadata=metadata, run_id=run_id)
        return engine.call(made)

    @contextmanager
    def open(
        self,
        *,
        kind: str = "run",
        title: str = "",
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        run_id: str | None = None,
        interrupt: bool = False,
    ) -> Iterator[ActiveRun]:
        """Be a run: `with runs.open(title="nightly") as run:`. It ends as the block ends.

        Its code asks `run.check_cancelled()` where it may stop; with `interrupt` a cancel raises `RunCancelled` in this
        thread by itself, as soon as Python code runs in it.

        Raises: as `Runs.open`.
        """
        run = self.create(kind=kind, title=title, owner=owner, metadata=metadata, run_id=run_id)
        with self.claim(run.id, interrupt=interrupt) as active:
            yield active

    @contextmanager
    def claim(self, run_id: str, *, interrupt: bool = False) -> Iterator[ActiveRun]:
        """Be a run that was created before. As `open`; see `Runs.claim`."""
        active = self.begin(run_id)
        stopper = Interrupt(active) if interrupt else None
        token = CURRENT.set(active)
        error: BaseException | None = None
        try:
            try:
                yield active
            finally:
                if stopper is not None:
                    stopper.disarm()
        except BaseException as exc:
            error = active.why_stopped() if isinstance(exc, RunCancelled) else exc
        take_back(CURRENT, token)
        self.end(active, error)
        if error is not None:
            raise error
        if active.fenced:
            raise active.why_stopped()

    def begin(self, run_id: str) -> ActiveRun:
        """See `Runs.begin`."""
        engine = self._engines.running()
        return engine.call(engine.client.begin(run_id))

    def end(self, active: ActiveRun, error: BaseException | None = None) -> None:
        """See `Runs.end`. In a process that was forked in the run it does nothing: the run is the parent's."""
        if active.here:
            engine = self._engines.running()
            engine.call(engine.client.end(active, error))

    def finish(self, run_id: str, status: RunStatus, *, error: str | None = None) -> Run:
        """End a run whoever has it. Raises: RunNotFound; RunEnded: it ended in another way."""
        engine = self._engines.running()
        return engine.call(engine.client.backend.finish(run_id, None, status, error=error))

    def close(self, *, flush_seconds: float = 5.0) -> None:
        """See `Runs.aclose`."""
        self._engines.close(lambda runs: runs.aclose(flush_seconds=flush_seconds))

    def __enter__(self) -> RunsSync:
        engine = self._engines.running()
        engine.call(engine.client.recover())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Interrupt:
    """Raises `RunCancelled` in the thread that made this, when its run should stop.

    Python delivers it between two instructions: a call into C that waits is not cut short.
    """

    def __init__(self, active: ActiveRun) -> None:
        self._active = active
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._armed = True
        self._raised = False
        active.on_stop = self._interrupt

    def disarm(self) -> None:
        """The code has ended: nothing is raised in it any more."""
        with self._lock:
            self._armed = False
            if self._raised:
                # It may be under way still: take it back, else it would hit whatever runs next in this thread.
                _raise_in(self._thread, None)
        self._active.on_stop = None

    def _interrupt(self) -> None:
        with self._lock:
            if self._armed:
                self._raised = True
                _raise_in(self._thread, RunCancelled)


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    error = ctypes.py_object(kind) if kind is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)
