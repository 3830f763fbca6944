"""A regular look at deadlines. A process that stood still reads what came meanwhile before it calls anything late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Sweeper"]

SWEEP_SECONDS = 0.05
LATE_SECONDS = 0.2
"""A look that comes so much too late waits once for the next one."""


class Sweeper:
    """Calls `sweep` again and again, as long as it answers True.

    Args:
        loop: the loop that is running.
        sweep: looks for what is late; whether there is anything left to look after.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sweep: Callable[[], bool]) -> None:
        self._loop = loop
        self._running = False
        self._sweep = sweep
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._put_off = False

    def start(self) -> None:
        """Begin to look; more than once is the same as once."""
        if not self._running:
            self._running = True
            self._plan()

    def stop(self) -> None:
        """Look no more."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()

    def _plan(self) -> None:
        self._due = self._loop.time() + SWEEP_SECONDS
        self._timer = self._loop.call_later(SWEEP_SECONDS, self._look)

    def _look(self) -> None:
        late = self._loop.time() - self._due > LATE_SECONDS
        self._put_off = late and not self._put_off
        self._running = self._put_off or self._sweep()
        if self._running:
            self._plan()
