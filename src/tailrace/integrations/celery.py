"""Celery tasks as runs: `instrument(runs)` in the worker's module, and every task is a run with its id.

Rules of this file
1. A task runs with or without its run: where that cannot begin, it is logged, and the task goes on.
2. The run ends as the task does. A retry is a run of its own, `<task id>.<number>`.
3. A cancel of the run reaches the task as `RunCancelled` within 1 s, in Python code; a call into C that waits is not
   cut short. A task that is revoked or killed by Celery ends its run as cancelled.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from contextvars import Token
from typing import Any

from celery import signals

from tailrace.errors import TailraceError
from tailrace.features.runs.active import CURRENT, ActiveRun
from tailrace.features.runs.model import RunStatus
from tailrace.features.runs.producing_sync import Interrupt, RunsSync
from tailrace.features.runs.steps import RunCancelled, take_back

__all__ = ["CeleryRuns", "instrument"]

log = logging.getLogger("tailrace.celery")


class _Running:
    def __init__(self, active: ActiveRun, interrupt: Interrupt | None) -> None:
        self.active = active
        self.interrupt = interrupt
        self.token: Token[ActiveRun | None] = CURRENT.set(active)
        self.error: BaseException | None = None


class CeleryRuns:
    """Listens to the worker's signals. Made by `instrument`; keep it."""

    def __init__(self, runs: RunsSync, *, tasks: Collection[str] | None, kind: str, interrupt: bool) -> None:
        self._runs = runs
        self._tasks = frozenset(tasks) if tasks is not None else None
        self._kind = kind
        self._interrupt = interrupt
        self._running: dict[str, _Running] = {}
        self._lock = threading.Lock()
        self._connect(signals.task_prerun, self._begin)
        self._connect(signals.task_failure, self._failed)
        self._connect(signals.task_retry, self._retried)
        self._connect(signals.task_postrun, self._end)
        self._connect(signals.task_revoked, self._revoked)
        self._connect(signals.worker_process_shutdown, self._close)
        self._connect(signals.worker_shutdown, self._close)

    @staticmethod
    def _connect(signal: Any, receiver: Callable[..., None]) -> None:
        # Celery keeps receivers weakly unless told otherwise.
        signal.connect(receiver, weak=False)

    def _begin(self, task_id: str, task: Any, **_: Any) -> None:
        if self._tasks is not None and task.name not in self._tasks:
            return
        try:
            run = self._runs.create(run_id=_run_id(task_id, task.request), kind=self._kind, title=task.name)
            active = self._runs.begin(run.id)
        except TailraceError as error:
            log.warning("a task has no run", extra={"task": task_id, "code": error.code})
            return
        running = _Running(active, Interrupt(active) if self._interrupt else None)
        with self._lock:
            self._running[task_id] = running

    def _failed(self, task_id: str, exception: BaseException, **_: Any) -> None:
        self._note(task_id, exception)

    def _retried(self, request: Any, reason: Any, **_: Any) -> None:
        self._note(request.id, reason if isinstance(reason, BaseException) else RuntimeError(f"retried: {reason}"))

    def _note(self, task_id: str, error: BaseException) -> None:
        with self._lock:
            running = self._running.get(task_id)
        if running is not None:
            running.error = error

    def _end(self, task_id: str, state: str | None = None, **_: Any) -> None:
        with self._lock:
            running = self._running.pop(task_id, None)
        if running is None:
            return
        if running.interrupt is not None:
            running.interrupt.disarm()
        take_back(CURRENT, running.token)
        if state is None and running.error is None:
            # Neither done nor failed: the worker ends this process in the middle of the task.
            running.error = RunCancelled("the task was revoked")
        try:
            self._runs.end(running.active, running.error)
        except TailraceError as error:
            log.warning("a task's run did not end with it", extra={"task": task_id, "code": error.code})

    def _revoked(self, request: Any, **_: Any) -> None:
        """In the worker's main process: the one that ran the task is gone, or it never ran."""
        run_id = _run_id(request.id, request)
        try:
            self._runs.finish(run_id, RunStatus.CANCELLED, error="the task was revoked")
        except TailraceError as error:
            log.info("a revoked task had no run to end", extra={"task": request.id, "code": error.code})

    def _close(self, **_: Any) -> None:
        self._runs.close()


def instrument(
    runs: RunsSync, *, tasks: Collection[str] | None = None, kind: str = "celery", interrupt: bool = True
) -> CeleryRuns:
    """Make a run of every task of this worker.

    In a task's code `current_run()` and `emit()` (`tailrace.features.runs.active`) are its run's.

    Args:
        runs: where to. Each process of the worker gets its own connections.
        tasks: only the tasks of these names.
        kind: the kind of the runs.
        interrupt: raise `RunCancelled` in a task whose run is cancelled; without, its code asks `check_cancelled()`.
    """
    return CeleryRuns(runs, tasks=tasks, kind=kind, interrupt=interrupt)


def _run_id(task_id: str, request: Any) -> str:
    retries = getattr(request, "retries", 0) or 0
    return f"{task_id}.{retries}" if retries else str(task_id)
