"""The load generator in C: the publisher's own calls, made ready by the package, sent at a fixed rate by `sender.c`.

A generator in Python uses as much of a slow machine as the gateway, and then measures itself. This one sends the same
bytes; only the call's number and the event's time are written into each call as it leaves.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import hiredis

from bench.process import Child, build, child, private_folder
from bench.server import Server, redis_version
from bench.stack import open_log
from tailrace.core.codec import prepare
from tailrace.core.event import Event
from tailrace.core.kinds import Kinds
from tailrace.core.names import StreamName
from tailrace.eventlog.redis.fields import pack
from tailrace.eventlog.redis.keys import Keys
from tailrace.eventlog.redis.lane import Batch, Call, Lane, Policy, append_words
from tailrace.eventlog.redis.scripts import load

__all__ = ["call_of", "sender"]

NUMBER = 1_000_000_000
"""Ten digits, whatever is added to it."""
TIME = 1_000_000_000_000_000_000
"""Nineteen digits, whatever time in nanoseconds is added to it; the audience takes it off again."""


def call_of(stream: StreamName, event: Event, *, version: tuple[int, ...]) -> tuple[bytes, int, int]:
    """One call of a new publisher as it leaves for Redis, and where its number and its event's `t` stand."""
    kinds = Kinds()
    keys, kind = Keys(kinds, prefix="tailrace:", cluster=False).of(stream), kinds.of(stream)
    prepared = [prepare(event, max_bytes=kind.max_event_bytes)]
    future: asyncio.Future[list[object]] = asyncio.get_running_loop().create_future()
    lane = Lane(stream, keys, None, Policy.of(kind), None)
    batch = Batch(lane.pid, NUMBER, [Call(prepared, len(prepared[0].data), 0.0, future)])  # type: ignore[arg-type]
    batch.labels = pack(prepared, batch.args)
    call: bytes = hiredis.pack_command(("EVALSHA", load("append").sha, *append_words(lane, batch, version)))  # type: ignore[arg-type]
    return call, _only(rb"\r\n(%d)\r\n" % NUMBER, call), _only(rb'"t":(%d)\D' % TIME, call)


@asynccontextmanager
async def sender(redis: Server, streams: Sequence[StreamName], *, filler: str) -> AsyncIterator[Child]:
    """A process that publishes to these streams in turns; it takes the commands of `bench.generator`.

    Raises:
        Missing: no C compiler.
    """
    binary = build("sender")
    version = tuple(map(int, (await redis_version()).split(".")))
    async with private_folder() as folder, open_log(redis.url) as log:
        await log.append(StreamName("run:script"), [Event("bench.script", {})])  # Redis has the script then
        with (folder / "calls").open("wb") as file:
            for n, stream in enumerate(streams):
                event = Event("bench.tick", {"t": TIME, "n": n, "fill": filler})
                call, number_at, time_at = call_of(stream, event, version=version)
                file.write(b"%d %d %d\n%b" % (len(call), number_at, time_at, call))
        async with child([binary, redis.url.removeprefix("unix://"), folder / "calls"]) as process:
            yield process


def _only(pattern: bytes, call: bytes) -> int:
    [found] = re.finditer(pattern, call)
    return found.start(1)
