"""An event loop in a thread, for code without one: what the sync clients stand on."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, Generic, TypeVar

from tailrace.client.forks import tell_children
from tailrace.errors import AlreadyClosed, UsageError

__all__ = ["Engine", "Engines"]

T = TypeVar("T")
C = TypeVar("C")
STOP_SECONDS = 4.0
"""How long tasks may take to end when they are cancelled."""
_abandoned: list[Engine[Any]] = []
"""Of parents: nothing of them may be finalized here, closing a selector would disturb the parent."""


class Engine(Generic[C]):
    """One event loop in a daemon thread, with one client on it. Belongs to one process."""

    def __init__(self, make: Callable[[], C]) -> None:
        self.pid = os.getpid()
        self._calling = threading.Lock()
        self._ended = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tailrace", daemon=True)
        self._thread.start()
        try:
            self.client: C = self.call(self._make(make))
        except BaseException:
            self._stop()
            raise

    @staticmethod
    async def _make(make: Callable[[], C]) -> C:
        return make()

    def call(self, coroutine: Coroutine[Any, Any, T], timeout_seconds: float | None = None) -> T:
        """Run a coroutine on the loop and wait for it. An interrupt (Ctrl-C) cancels it.

        Raises:
            AlreadyClosed: the engine was closed before, or meanwhile.
            UsageError: this is the loop's own thread: it would wait for itself.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise UsageError("the client's own thread cannot wait for the client: call it from another")
        if os.getpid() != self.pid:
            coroutine.close()
            raise AlreadyClosed("it belongs to the parent process")
        with self._calling:
            if self._ended:
                coroutine.close()
                raise AlreadyClosed("the client was closed")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_seconds)
        except CancelledError:
            raise AlreadyClosed("the client was closed") from None
        except BaseException:
            future.cancel()
            raise

    def close(self, closing: Coroutine[Any, Any, None]) -> None:
        """Run what closes the client, and end the thread."""
        try:
            self.call(closing)
        finally:
            self._stop()

    def _stop(self) -> None:
        with self._calling:
            self._ended = True
            stopping = asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop)
        stopping.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._loop.stop))
        self._thread.join(STOP_SECONDS + 1.0)
        if not self._thread.is_alive():
            self._loop.close()

    async def _cancel_all(self) -> None:
        """End all tasks, and let those who wait for them in other threads hear of it before the loop stops."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=STOP_SECONDS)
        await asyncio.sleep(0)


class Engines(Generic[C]):
    """The engine of this process: made anew in a child that was forked from one that had it."""

    def __init__(self, make: Callable[[], C]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._closed = False
        self._engine: Engine[C] | None = Engine(make)
        tell_children(self)

    def running(self) -> Engine[C]:
        """The engine.

        Raises:
            AlreadyClosed: it was closed.
        """
        with self._lock:
            if self._closed:
                raise AlreadyClosed("the client was closed")
            if self._engine is None:
                self._engine = Engine(self._make)
            return self._engine

    def close(self, closing: Callable[[C], Coroutine[Any, Any, None]]) -> None:
        """Close the client and end its thread. A second time it does nothing."""
        with self._lock:
            engine, self._engine, self._closed = self._engine, None, True
        if engine is not None and engine.pid == os.getpid():
            engine.close(closing(engine.client))

    def forked(self) -> None:
        """In the child the loop's thread is gone, and its sockets are the parent's: keep them untouched, begin anew."""
        self._lock = threading.Lock()
        if self._engine is not None:
            _abandoned.append(self._engine)
            self._engine = None
