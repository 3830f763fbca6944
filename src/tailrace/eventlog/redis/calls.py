"""Small commands and scripts beside the log, sent again until an answer comes or the time is over.

Rules of this file
1. Only for what may be executed twice: a command that was cut off is sent again, within its deadline.
2. The connections are of their own: what waits here never waits behind a publish or a page.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from tailrace.errors import LogTimeout, LogUnavailable
from tailrace.eventlog.redis.connection import Arg, CommandFailed, Connection, ReplyError
from tailrace.eventlog.redis.endpoint import Endpoint
from tailrace.eventlog.redis.reply import server_word
from tailrace.eventlog.redis.scripts import Script
from tailrace.eventlog.redis.topology import Topology

__all__ = ["Calls", "load_script"]

CALL_SECONDS = 1.5
"""Overall deadline of one call."""
PAUSE_SECONDS = 0.05
_MOVING = frozenset({"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "READONLY", "LOADING"})


@cache
def load_script(folder: str, name: str) -> Script:
    """A script of `lua/<folder>/`. Reads a file: at import, not in the event loop."""
    text = (files("tailrace.eventlog.redis") / "lua" / folder / f"{name}.lua").read_bytes()
    return Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest())


class Calls:
    """See the rules above.

    Args:
        topology: which server has a key.
        name: client name of the connections.
        what: what answers, for errors.
    """

    def __init__(self, topology: Topology, *, name: str, what: str) -> None:
        self._topology = topology
        self._name = name
        self._what = what
        self._connections: dict[Endpoint, Connection] = {}
        self._opening: dict[Endpoint, asyncio.Lock] = {}
        self._closed = False

    async def aclose(self) -> None:
        """Give the connections back."""
        self._closed = True
        connections, self._connections = list(self._connections.values()), {}
        for connection in connections:
            connection.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await asyncio.gather(*(asyncio.shield(each.closed) for each in connections), return_exceptions=True)

    async def script(self, script: Script, keys: Sequence[str], argv: Sequence[Arg] = ()) -> Any:
        """Run a script.

        Raises:
            LogUnavailable: as `call`.
        """
        try:
            return await self.call(keys[0], "EVALSHA", script.sha, len(keys), *keys, *argv)
        except _NoScript:
            return await self.call(keys[0], "EVAL", script.text, len(keys), *keys, *argv)

    async def call(self, key: str, *words: Arg) -> Any:
        """Send one idempotent command to the server that has the key, following it where it moves.

        Raises:
            LogUnavailable: no answer in time, or the server refuses. When the time ends within an attempt, the
                reason is what ended the one before.
        """
        deadline = asyncio.get_running_loop().time() + CALL_SECONDS
        asked: Endpoint | None = None
        last: LogUnavailable | None = None
        while True:
            endpoint: Endpoint | None = None
            connection: Connection | None = None
            try:
                endpoint = asked or await self._topology.endpoint_for(self._topology.slot(key))
                connection = await self._connection(endpoint, deadline)
                return await connection.call(*words, deadline=deadline, asking=asked is not None)
            except ReplyError as exc:
                if exc.code == "NOSCRIPT":
                    raise _NoScript from None
                word = server_word(exc.message)
                if word not in _MOVING or endpoint is None:
                    raise LogUnavailable(f"{self._what} refused: {word}") from exc
                target = self._topology.redirected(exc, endpoint)
                asked = target if word == "ASK" else None
                if word != exc.code:
                    self._topology.lost(endpoint)  # a script's own words around it say it to us only
                last = LogUnavailable(f"{self._what} is moving: {word}")
            except CommandFailed as exc:
                if connection is not None:
                    connection.abort()  # silent or gone; the next call finds out on a new one
                last, asked = _reason(exc, last), None
            except LogUnavailable as exc:
                if endpoint is not None:
                    self._topology.lost(endpoint)
                last, asked = _reason(exc, last), None
            if asyncio.get_running_loop().time() + PAUSE_SECONDS >= deadline or self._closed:
                raise last
            await asyncio.sleep(PAUSE_SECONDS)

    async def knows(self, key: str, *words: Arg) -> bool:
        """Whether the server knows a command at all; one that it refuses for another reason it knows.

        Raises:
            LogUnavailable: no answer in time.
        """
        try:
            await self.call(key, *words)
        except LogUnavailable as exc:
            if isinstance(exc.__cause__, ReplyError):
                return "unknown command" not in exc.__cause__.message.lower()
            raise
        return True

    async def _connection(self, endpoint: Endpoint, deadline: float) -> Connection:
        lock = self._opening.setdefault(endpoint, asyncio.Lock())
        async with lock:
            connection = self._connections.get(endpoint)
            if connection is None or connection.closed.done():
                if self._closed:
                    raise LogUnavailable(f"{self._what} was closed")
                connection = await Connection.open(endpoint, deadline=deadline, name=self._name)
                self._connections[endpoint] = connection
            return connection


def _reason(exc: LogUnavailable, before: LogUnavailable | None) -> LogUnavailable:
    return before if before is not None and isinstance(exc, LogTimeout) else exc


class _NoScript(Exception):
    """The server does not have the script (any more)."""
