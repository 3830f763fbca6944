"""Ask a node which of many streams are not as we know them (lua/changed.lua)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from tailrace.core.page import Head
from tailrace.eventlog.redis.asker import Asker
from tailrace.eventlog.redis.connection import CommandFailed, Connection, ReplyError
from tailrace.eventlog.redis.scripts import load, read_head
from tailrace.eventlog.redis.watched import Watched

__all__ = ["ask_changed"]

SLICE = 500
"""Streams of one script call: about a millisecond of the server's time."""
PIPELINE = 200
"""Script calls under way at once."""
REPLY_SECONDS = 2.0


async def ask_changed(asker: Asker, streams: Sequence[Watched]) -> list[tuple[Watched, Head]]:
    """The streams whose head is not the known one, with the head they have now.

    Streams of one node; on Cluster they are asked slot by slot, since a script may not cross slots.

    Raises:
        CommandFailed: the node did not answer in time, or cannot answer now.
        ReplyError: it answers with another error.
    """
    connection = asker.connection
    if connection is None:
        raise CommandFailed(f"{asker.endpoint.label} is not connected", written=False)
    calls = _calls(streams)
    changed: list[tuple[Watched, Head]] = []
    for start in range(0, len(calls), PIPELINE):
        some = calls[start : start + PIPELINE]
        replies = await _send(connection, some)
        asker.answered()
        for call, reply in zip(some, replies, strict=True):
            changed.extend((call[index], read_head(parts)) for index, *parts in reply)
    return changed


def _calls(streams: Sequence[Watched]) -> list[Sequence[Watched]]:
    if not streams or streams[0].slot is None:
        return [streams[start : start + SLICE] for start in range(0, len(streams), SLICE)]
    by_slot: dict[int | None, list[Watched]] = {}
    for watched in streams:
        by_slot.setdefault(watched.slot, []).append(watched)
    return [some[start : start + SLICE] for some in by_slot.values() for start in range(0, len(some), SLICE)]


async def _send(connection: Connection, calls: Sequence[Sequence[Watched]]) -> list[list[Any]]:
    futures = [connection.send(*_command("EVALSHA", load("changed").sha, call)) for call in calls]
    deadline = asyncio.get_running_loop().time() + REPLY_SECONDS
    replies = []
    try:
        async with asyncio.timeout_at(deadline):
            for future, call in zip(futures, calls, strict=True):
                replies.append(await _reply(connection, future, call))
    except TimeoutError:
        raise CommandFailed(f"{connection.endpoint.label} did not answer in time", written=True) from None
    return replies


async def _reply(connection: Connection, future: asyncio.Future[Any], call: Sequence[Watched]) -> list[Any]:
    try:
        try:
            return list(await future)
        except ReplyError as exc:
            if exc.code != "NOSCRIPT":
                raise
        return list(await connection.send(*_command("EVAL", load("changed").text, call)))
    except ReplyError as exc:
        if exc.code in ("MOVED", "ASK"):
            return []  # on its way to another node, which is asked next time
        raise


def _command(verb: str, script: str | bytes, call: Sequence[Watched]) -> list[bytes | str | int]:
    command: list[bytes | str | int] = [verb, script, 2 * len(call)]
    for watched in call:
        command += watched.keys[:2]
    command += [watched.signature for watched in call]
    return command
