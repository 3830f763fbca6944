"""Questions to the log: pages, heads, and the managing scripts, on connections of their own.

A large page must not delay an append, so reads never share a connection with writes. Every question here can be asked
twice without harm; when its connection is lost it is asked once more on a new one, within the deadline.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from tailrace.errors import AlreadyClosed, LogTimeout, LogUnavailable, Unsupported
from tailrace.eventlog.redis.connection import Arg, Connection, ConnectionLost, ReplyError, ReplyLate
from tailrace.eventlog.redis.node import Node
from tailrace.eventlog.redis.reply import MOVING, NOT_NOW, error_for, server_word
from tailrace.eventlog.redis.routes import Routes
from tailrace.eventlog.redis.scripts import Script

__all__ = ["Reader"]

_AGAIN_SECONDS = 0.05


class Reader:
    """See above. Belongs to one event loop."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._loop = asyncio.get_running_loop()
        self._closed = False

    async def run(
        self, script: Script, keys: tuple[bytes, ...], *args: Arg, deadline: float, publishes: bool = False
    ) -> Any:
        """Run a script on the server that has the keys.

        Args:
            script: which.
            keys: its KEYS, all of one slot.
            args: its ARGV; when it publishes, after the name of the command for that.
            deadline: on the loop's clock.
            publishes: whether it wants that name.

        Raises:
            LogUnavailable: no answer in time (LogTimeout), or the server cannot do it now.
        """
        slot = self._routes.slot(keys[0])

        def words(connection: Connection, whole: bool) -> list[Arg]:
            made: list[Arg] = ["EVAL", script.text] if whole else ["EVALSHA", script.sha]
            made += (len(keys), *keys)
            if publishes:
                made.append("SPUBLISH" if slot is not None and connection.version >= (7,) else "PUBLISH")
            made += args
            return made

        return await self._ask(slot, words, deadline)

    async def command(self, key: bytes, *words: Arg, deadline: float) -> Any:
        """Send one command that only reads to the server that has the key.

        Raises: as `run`.
        """
        return await self._ask(self._routes.slot(key), lambda _connection, _whole: list(words), deadline)

    async def _ask(self, slot: int | None, words: Callable[[Connection, bool], list[Arg]], deadline: float) -> Any:
        node: Node | None = None
        asking = whole = False
        while True:
            if self._closed:
                raise AlreadyClosed("the log was closed")
            if node is None:
                node = await self._locate(slot, deadline)
            connection = await node.ready(deadline)
            try:
                return await self._call(node, connection, deadline, asking, *words(connection, whole))
            except ReplyLate:
                raise LogTimeout("the log did not answer in time") from None
            except ConnectionLost:
                node, asking = None, False
            except ReplyError as exc:
                word = server_word(exc.message)
                if word == "NOSCRIPT":
                    whole = True
                else:
                    node, asking = await self._redirect(exc, word, node, deadline)

    async def _call(self, node: Node, connection: Connection, deadline: float, asking: bool, *words: Arg) -> Any:
        future = connection.call(*words, deadline=deadline, asking=asking)
        self._loop.call_soon(node.sent)
        return await future

    async def _locate(self, slot: int | None, deadline: float) -> Node:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._routes.locate(slot)
        except TimeoutError:
            raise LogTimeout("nobody said in time which server has the stream") from None

    async def _redirect(self, error: ReplyError, word: str, node: Node, deadline: float) -> tuple[Node | None, bool]:
        if word in MOVING:
            return self._routes.redirected(error, node), word == "ASK"
        if word not in NOT_NOW and not (word == "READONLY" and self._routes.fails_over):
            if "unknown command" in error.message.lower():
                raise Unsupported("this server cannot do it") from error
            raise error_for(error.message) or LogUnavailable(f"the log refused: {error.message[:200]}") from error
        self._routes.redirected(error, node)
        pause = _AGAIN_SECONDS * random.uniform(0.5, 1.5)
        if self._loop.time() + pause >= deadline:
            raise LogUnavailable(f"the log does not answer now: {word}") from error
        await asyncio.sleep(pause)
        return None, False

    def close(self) -> None:
        """Nothing is asked any more."""
        self._closed = True
