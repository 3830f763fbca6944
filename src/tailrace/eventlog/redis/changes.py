"""Ask a node about many streams at once: which are not as we know them, and where they end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeAlias

from tailrace.core.page import Head
from tailrace.eventlog.redis.asker import REPLY_SECONDS, UNANSWERED, Asker, in_seconds
from tailrace.eventlog.redis.connection import CommandFailed, Connection, ReplyError
from tailrace.eventlog.redis.scripts import Script, load, read_head
from tailrace.eventlog.redis.watched import Watched

__all__ = ["ask_changed", "ask_tips"]

_CHANGED, _TIPS = load("changed"), load("tips")  # read now: not while a loop runs
SLICE = 500
"""Streams of one script call: about a millisecond of the server's time."""
PIPELINE = 200
"""Script calls under way at once."""

_Call: TypeAlias = tuple[list[bytes], list[bytes]]
"""Keys and arguments."""


async def ask_changed(asker: Asker, streams: Sequence[Watched]) -> list[tuple[Watched, Head]]:
    """The streams whose head is not the known one, with the head they have now.

    Streams of one node; on Cluster they are asked slot by slot, since a script may not cross slots.

    Raises:
        CommandFailed: the node did not answer in time, or cannot answer now.
        ReplyError: it answers with another error.
    """
    slices = _slices(streams)
    calls: list[_Call] = [
        (
            [key for watched in some for key in watched.keys[:2]],
            [watched.signature for watched in some],
        )
        for some in slices
    ]
    changed: list[tuple[Watched, Head]] = []
    for some, reply in zip(slices, await _ask(asker, _CHANGED, calls), strict=True):
        changed.extend((some[index], read_head(parts)) for index, *parts in reply)
    return changed


async def ask_tips(asker: Asker, streams: Sequence[Watched]) -> list[bytes]:
    """The id of each stream's last entry, whoever wrote it: b"0-0" for none, b"" when the key holds something else.

    Off Cluster only. Raises: as `ask_changed`.
    """
    calls: list[_Call] = [([watched.keys.events for watched in some], []) for some in _slices(streams)]
    return [tip for reply in await _ask(asker, _TIPS, calls) for tip in reply]


def _slices(streams: Sequence[Watched]) -> list[Sequence[Watched]]:
    if not streams or streams[0].slot is None:
        return [streams[start : start + SLICE] for start in range(0, len(streams), SLICE)]
    by_slot: dict[int | None, list[Watched]] = {}
    for watched in streams:
        by_slot.setdefault(watched.slot, []).append(watched)
    return [some[start : start + SLICE] for some in by_slot.values() for start in range(0, len(some), SLICE)]


async def _ask(asker: Asker, script: Script, calls: list[_Call]) -> list[list[Any]]:
    replies: list[list[Any]] = []
    for start in range(0, len(calls), PIPELINE):
        connection = asker.connection
        if connection is None:
            raise CommandFailed(f"{asker.endpoint.label} is not connected", written=False)
        some = calls[start : start + PIPELINE]
        futures = [connection.send("EVALSHA", script.sha, len(keys), *keys, *args) for keys, args in some]
        try:
            async with asyncio.timeout_at(in_seconds(REPLY_SECONDS)):
                for future, (keys, args) in zip(futures, some, strict=True):
                    replies.append(await _reply(connection, script, future, keys, args))
        except TimeoutError:
            raise CommandFailed(f"{asker.endpoint.label} did not answer in time", written=True) from None
        asker.answered()
    return replies


async def _reply(
    connection: Connection, script: Script, future: asyncio.Future[Any], keys: list[bytes], args: list[bytes]
) -> list[Any]:
    try:
        try:
            return list(await future)
        except ReplyError as exc:
            if exc.code != "NOSCRIPT":
                raise
        return list(await connection.send("EVAL", script.text, len(keys), *keys, *args))
    except ReplyError as exc:
        if exc.code in ("MOVED", "ASK"):
            return []  # on its way to another node, which is asked next time
        if exc.code in UNANSWERED:
            raise CommandFailed(f"{connection.endpoint.label} does not answer now: {exc.code}", written=True) from exc
        raise
