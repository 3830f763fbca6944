"""`ActiveRun`: a run that this process produces, as its code sees it.

Rules of this file
1. Nothing here waits: events go to the spool, asking whether to stop reads a flag. Every method may be called from any
   thread.
2. Once the run is fenced (another producer has it, or it was lost) nothing more is said in its name.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from tailrace.client.emitting import Emitting
from tailrace.core.codec import prepare
from tailrace.core.compact import DELTA
from tailrace.core.event import Event
from tailrace.errors import Fenced
from tailrace.features.runs.backend import Claim
from tailrace.features.runs.steps import STEP, RunCancelled, Step, TextBuffer, flush_on

__all__ = ["CURRENT", "ActiveRun", "current_run", "emit"]

CURRENT: ContextVar[ActiveRun | None] = ContextVar("tailrace_run", default=None)
MAX_EVENT_BYTES = 1_048_576


class ActiveRun:
    """A run and this process's claim on it. Made by `Runs` and `RunsSync`."""

    def __init__(self, claim: Claim, emitting: Emitting) -> None:
        self.run = claim.run
        """The run as it was when it was claimed."""
        self.id = claim.run.id
        self.stream = claim.run.stream
        self.epoch = claim.epoch
        self.result: Any = None
        """Set it to a small JSON value, or a reference: it is kept with the run when it completes."""
        self.fenced = False
        """Whether the run is no longer this process's."""
        self.on_stop: Callable[[], None] | None = None
        """Called once, on the event loop, when the code should stop."""
        self._emitting = emitting
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._lock = threading.RLock()
        self._text = TextBuffer(self._put_text, lambda: flush_on(self._loop, self._thread, self._flush_text))
        self._numbers = itertools.count(1)
        self._stopping = False
        self._closed = False

    @property
    def here(self) -> bool:
        """Whether this is the process that produces the run, and not one that was forked from it."""
        return self._emitting.here

    # -- saying ----------------------------------------------------------------------------------------------

    def emit(
        self,
        type: str,  # noqa: A002 - the word of the domain
        data: Any = None,
        *,
        uid: str | None = None,
        key: str | None = None,
        actor: str | None = None,
    ) -> bool:
        """Say that something happened. Never waits; events are stored in the order of the calls, each once.

        False: it is not going to be stored, because the spool is full (the number of such events is told at their
        place in the stream), the run is no longer ours, or this process was forked from the one that has it.

        Raises:
            Malformed: not an event. TooLarge: over 1 MB.
        """
        checked = prepare(Event(type, data, uid, key, actor), max_bytes=MAX_EVENT_BYTES)
        if not self.here:
            return False
        with self._lock:
            self._text.flush()
            return self._put(Event(checked.type, checked.data, uid, key, actor))

    def token(self, step: str, text: str) -> None:
        """Add a piece of the text that a step makes: it leaves with others, within 50 ms.

        Raises:
            Malformed: not text that UTF-8 can have. TooLarge: over 1 MB.
        """
        if self.here:
            with self._lock:
                self._text.add(step, text)

    def step(self, name: str, *, kind: str = "step", step_id: str | None = None, parent: str | None = None) -> Step:
        """A part of the run: `async with run.step("plan"):` or `with run.step("plan"):`.

        Args:
            name: for people; need not be unique.
            kind: what sort of part it is.
            step_id: unique in the run; without: a new one.
            parent: id of the step around it; without: the one that is open here.
        """
        outer = STEP.get()
        if parent is None and outer is not None:
            parent = outer.id
        return Step(self, step_id or f"s{next(self._numbers)}", name, kind, parent)

    # -- stopping --------------------------------------------------------------------------------------------

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked for the run's end."""
        return self._stopping and not self.fenced

    def check_cancelled(self) -> None:
        """Stop here, if the code should stop. For threads; a task is cancelled by itself.

        Raises:
            RunCancelled: somebody asked for the run's end. Fenced: the run is no longer ours.
        """
        if self._stopping:
            raise self.why_stopped()

    def why_stopped(self) -> RunCancelled | Fenced:
        """The error that says why the code was stopped."""
        if self.fenced:
            return Fenced(f"run {self.id} is no longer this producer's: it was taken over, or it ended without it")
        return RunCancelled(f"run {self.id} was cancelled")

    # -- what its owner calls, on the loop -------------------------------------------------------------------

    def stop(self, *, fenced: bool = False) -> None:
        """Make the code stop. Told more than once, it is done once."""
        self.fenced = self.fenced or fenced
        if not self._stopping:
            self._stopping = True
            if self.on_stop is not None:
                self.on_stop()

    def close(self) -> None:
        """The code has ended: what is put together leaves, and nothing more is taken."""
        with self._lock:
            self._text.flush()
            self._closed = True

    def _flush_text(self) -> None:
        with self._lock:
            self._text.flush(timed=True)

    def _put_text(self, step: str, text: str) -> None:
        data = prepare(Event(DELTA, {"step": step, "text": text}), max_bytes=MAX_EVENT_BYTES).data
        self._put(Event(DELTA, data))

    def _put(self, event: Event) -> bool:
        return not (self._closed or self.fenced) and self._emitting.emit(self.stream, event, self.epoch)


def current_run() -> ActiveRun | None:
    """The run that the code here belongs to: of this task or thread, and of those it started with its context."""
    return CURRENT.get()


def emit(type: str, data: Any = None, *, key: str | None = None) -> bool:  # noqa: A002
    """Emit an event of the current run, from wherever the code is. False: there is none, or see `ActiveRun.emit`."""
    run = CURRENT.get()
    return run is not None and run.emit(type, data, key=key)
