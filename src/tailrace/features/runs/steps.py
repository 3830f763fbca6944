"""Steps of a run, and the text that they make piece by piece.

Rules of this file
1. A step is `step.started`, then `step.completed`, `step.failed` or `step.cancelled`, each with its `step` (an id), and
   in between events that name it. Steps may be inside of steps (`parent`), and beside each other.
2. Text leaves as `token.delta {"step","text"}` when there are 1 KiB of it, after 50 ms, or before anything else of the
   same run is said: the order is the order of the calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from tailrace.errors import Malformed, TailraceError, UsageError

if TYPE_CHECKING:
    from tailrace.features.runs.active import ActiveRun

__all__ = ["STEP", "RunCancelled", "Step", "TextBuffer", "error_text", "take_back"]

V = TypeVar("V")
MAX_ERROR_TEXT = 10_000
"""Longer errors are cut: they hold whole documents, and neither an event nor a run's end may be refused for that."""
LINGER_SECONDS = 0.05
FULL_CHARACTERS = 1_024
STEP: ContextVar[Step | None] = ContextVar("tailrace_step", default=None)
"""The innermost step that is open here."""


class RunCancelled(TailraceError):
    """Somebody asked for the run's end, and it stopped."""

    code = "RUN_CANCELLED"
    status = 409


class Step:
    """A part of a run. Use it as a context manager, async or not; or `start` it and end it once."""

    def __init__(self, run: ActiveRun, step_id: str, name: str, kind: str, parent: str | None) -> None:
        self.id = step_id
        self.name = name
        self._run = run
        self._kind = kind
        self._parent = parent
        self._begun = 0.0
        self._ended = False
        self._outer: Token[Step | None] | None = None

    def start(self, **facts: Any) -> Step:
        """Say that it begins."""
        self._begun = time.monotonic()
        data: dict[str, Any] = {"step": self.id, "name": self.name, "kind": self._kind}
        if self._parent is not None:
            data["parent"] = self._parent
        self._run.emit("step.started", data | facts)
        return self

    def emit(self, type: str, data: dict[str, Any] | None = None) -> bool:  # noqa: A002 - the word of the domain
        """Emit an event that names the step. See `ActiveRun.emit`."""
        return self._run.emit(type, {"step": self.id, **(data or {})})

    def token(self, text: str) -> None:
        """Add a piece of the text that this step makes. Pieces are put together before they leave."""
        self._run.token(self.id, text)

    def complete(self, **facts: Any) -> None:
        """Say that it is done."""
        self._end("step.completed", facts)

    def fail(self, error: BaseException | str, **facts: Any) -> None:
        """Say that it failed, and why."""
        self._end("step.failed", {"error": error if isinstance(error, str) else error_text(error), **facts})

    def cancel(self) -> None:
        """Say that it was stopped."""
        self._end("step.cancelled", {})

    def _end(self, type_: str, facts: dict[str, Any]) -> None:
        if self._ended:
            raise UsageError("a step ends once")
        self._ended = True
        seconds = round(time.monotonic() - self._begun, 3)
        self._run.emit(type_, {"step": self.id, "name": self.name, "seconds": seconds, **facts})

    def __enter__(self) -> Step:
        self._outer = STEP.set(self)
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._outer is not None:
            take_back(STEP, self._outer)
        if self._ended:
            return
        if error is None:
            self.complete()
        elif isinstance(error, (asyncio.CancelledError, RunCancelled, KeyboardInterrupt, GeneratorExit)):
            self.cancel()
        else:
            self.fail(error)

    async def __aenter__(self) -> Step:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


class TextBuffer:
    """Puts pieces of text together. Its owner holds a lock around `add` and `flush`.

    Args:
        put: takes a step's id and its text.
        flush_later: makes its owner call `flush` after a moment.
    """

    def __init__(self, put: Callable[[str, str], None], flush_later: Callable[[], None]) -> None:
        self._put = put
        self._flush_later = flush_later
        self._parts: dict[str, list[str]] = {}
        self._sizes: dict[str, int] = {}
        self._waiting = False

    def add(self, step: str, text: str) -> None:
        """Take a piece.

        Raises:
            Malformed: a lone surrogate is in it. Told to who said it, not to whoever speaks or ends next.
        """
        if not text:
            return
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Malformed("a lone surrogate is no text", field="text") from None
        self._parts.setdefault(step, []).append(text)
        self._sizes[step] = self._sizes.get(step, 0) + len(text)
        if self._sizes[step] >= FULL_CHARACTERS:
            self._leave(step)
        elif not self._waiting:
            self._waiting = True
            self._flush_later()

    def flush(self, *, timed: bool = False) -> None:
        """Let everything leave."""
        if timed:
            self._waiting = False
        for step in list(self._parts):
            self._leave(step)

    def _leave(self, step: str) -> None:
        del self._sizes[step]
        self._put(step, "".join(self._parts.pop(step)))


def flush_on(loop: asyncio.AbstractEventLoop, thread: int, flush: Callable[[], None]) -> None:
    """Call `flush` on a loop after a moment, from whatever thread this is."""
    if threading.get_ident() == thread:
        loop.call_later(LINGER_SECONDS, flush)
        return
    # A loop that is closed has let the run go: nothing can leave any more.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(loop.call_later, LINGER_SECONDS, flush)


def error_text(error: BaseException) -> str:
    """An error for people, as UTF-8 can have it: names of files may be in it."""
    text = str(error)[:MAX_ERROR_TEXT].encode(errors="replace").decode()
    return f"{type(error).__name__}: {text}"[:MAX_ERROR_TEXT] if text else type(error).__name__


def take_back(variable: ContextVar[V], token: Token[V]) -> None:
    """Undo a `set`, where that was: a generator may be ended in another context (by another thread, by the garbage
    collector), in which there is nothing to undo, and what has to end must end all the same."""
    with contextlib.suppress(ValueError):
        variable.reset(token)
