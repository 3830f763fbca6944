"""A tail's question connection to one node, and how a tail notices that the log does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from tailrace.errors import LogUnavailable
from tailrace.eventlog.base import TailListener
from tailrace.eventlog.redis.connection import CommandFailed, Connection, ReplyError
from tailrace.eventlog.redis.endpoint import Endpoint

__all__ = [
    "OPEN_SECONDS",
    "REPLY_SECONDS",
    "UNANSWERED",
    "Asker",
    "AskerOwner",
    "Pause",
    "in_seconds",
    "look_out",
    "probe_number",
]

log = logging.getLogger("tailrace.tail")

TICK_SECONDS = 0.25
OPEN_SECONDS = 1.0
"""For one attempt to connect and log in."""
REPLY_SECONDS = 2.0
"""A question that is not answered by then ends its connection."""
MAX_PAUSE_SECONDS = 0.5
SILENT_SECONDS = 0.75
"""A node that answered nothing for this long has stopped to answer."""
LOOK_SECONDS = 0.1
PROBE_DIGITS = 15
LATE_SECONDS = 0.3
"""When our own loop was this late, silence proves nothing yet."""

UNANSWERED = frozenset({"BUSY", "LOADING", "MASTERDOWN", "CLUSTERDOWN"})
"""Error replies of a node that cannot answer anything now."""


class AskerOwner(Protocol):
    """What an asker tells the tail."""

    def unreachable(self, endpoint: Endpoint) -> None:
        """A connection to the node was lost or cannot be made."""

    async def tick(self, asker: Asker) -> None:
        """Four times a second, when the node answers: ask what has to be asked."""


class Asker:
    """Keeps one connection for questions open, and says when it was last answered.

    Nothing is retried: `run` opens the connection again, with jittered back-off, until cancelled.
    """

    def __init__(self, endpoint: Endpoint, owner: AskerOwner) -> None:
        self.endpoint = endpoint
        self.answered_at = asyncio.get_running_loop().time()
        """When the node last answered a question."""
        self.wake = asyncio.Event()
        """Set to have the next tick at once."""
        self.connection: Connection | None = None
        self.up = asyncio.Event()
        """Set while there is a connection."""
        self._owner = owner
        self._failing = False

    async def run(self) -> None:
        """Keep asking until cancelled."""
        pause = Pause()
        while True:
            try:
                self.connection = await Connection.open(
                    self.endpoint, deadline=in_seconds(OPEN_SECONDS), name="tailrace-ask"
                )
                self.up.set()
                while True:
                    await self._owner.tick(self)
                    self._failing = False
                    pause.reset()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(TICK_SECONDS):
                            await self.wake.wait()
                    self.wake.clear()
            except (LogUnavailable, ReplyError) as exc:
                self._log_failure(exc)
                self._owner.unreachable(self.endpoint)
                await pause.wait()
            finally:
                self.up.clear()
                if self.connection is not None:
                    self.connection.abort()
                    self.connection = None

    def _log_failure(self, exc: Exception) -> None:
        """Say it once, until it is well again."""
        if not self._failing or isinstance(exc, ReplyError):
            log.warning("the node does not answer", extra={"node": self.endpoint.label, "error": str(exc)})
        self._failing = True

    async def ask(self, *command: bytes | str | int) -> Any:
        """Ask the node something.

        Raises:
            LogUnavailable: no answer in time, or the node answers that it cannot answer now.
            ReplyError: another error.
        """
        if self.connection is None:
            raise CommandFailed(f"{self.endpoint.label} is not connected", written=False)
        try:
            reply = await self.connection.call(*command, deadline=in_seconds(REPLY_SECONDS))
        except ReplyError as exc:
            if exc.code in UNANSWERED:
                raise CommandFailed(f"{self.endpoint.label} does not answer now: {exc.code}", written=True) from exc
            self.answered()
            raise
        self.answered()
        return reply

    def answered(self) -> None:
        """The node has answered something."""
        self.answered_at = asyncio.get_running_loop().time()


class Pause:
    """Back-off between attempts, with jitter; the first comes almost at once."""

    def __init__(self) -> None:
        self._next = 0.02

    def reset(self) -> None:
        """The last attempt went well."""
        self._next = 0.02

    async def wait(self) -> None:
        """Wait before the next attempt, longer each time."""
        await asyncio.sleep(self._next * random.uniform(0.5, 1.5))
        self._next = min(MAX_PAUSE_SECONDS, self._next * 3)


async def look_out(
    askers: Callable[[], Iterable[Asker]], listener: TailListener, upkeep: Callable[[], None] | None = None
) -> None:
    """Tell the listener when a node stops and starts to answer, until cancelled. No asker at all is silence too."""
    loop = asyncio.get_running_loop()
    started = looked = loop.time()
    degraded = False
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = loop.time()
        late, looked = now - looked > LOOK_SECONDS + LATE_SECONDS, now
        silent = now - min((asker.answered_at for asker in askers()), default=started) > SILENT_SECONDS
        if silent != degraded and not (silent and late):
            degraded = silent
            listener.on_degraded(silent)
        if upkeep is not None:
            upkeep()


def in_seconds(seconds: float) -> float:
    """A deadline on the loop's clock."""
    return asyncio.get_running_loop().time() + seconds


def probe_number(message: bytes, before: int) -> int:
    """The number of a probe that came back. Others may publish to its channel, too: what they say changes nothing."""
    return int(message) if message.isdigit() and len(message) <= PROBE_DIGITS else before
