"""A load generator in a process of its own: events at a fixed rate, each with the time at which it was due.

`python -m bench.generator FIRST STREAMS EVENTS_A_CALL [PORT]`: to so many streams from number FIRST on, through the log
at BENCH_REDIS_URL, or as NDJSON to the gateway on PORT with BENCH_TOKEN. Each line `run RATE EVENTS` on its input is
answered with one line of JSON. `sender.c` takes the same commands.

It is an open loop: a call that is slow delays no other, and every event carries the time it was due, not the time it
was sent. So the delay that a reader sees holds all waiting, the generator's own included (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing
from typing import TypeAlias

import msgspec
import uvloop

from bench.harness import Histogram
from bench.process import cpu_seconds
from bench.publish import Connections
from bench.stack import open_log
from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.errors import TailraceError

__all__ = ["FILLER", "stream_of"]

FILLER = "x" * 150
TICK_SECONDS = 0.001
MOST_CONNECTIONS = 64
Send: TypeAlias = Callable[[StreamName, list[Event]], Awaitable[object]]


def stream_of(n: int) -> StreamName:
    """The stream of connection n."""
    return StreamName.parse(f"run:load-{n}")


class Generator:
    """Calls in flight, and what became of them."""

    def __init__(self, send: Send, streams: range, events_a_call: int) -> None:
        self._send = send
        self._streams = [stream_of(n) for n in streams]
        self._each = events_a_call

    async def run(self, rate: float, count: int) -> dict[str, object]:
        """Send `count` events, `rate` a second, call by call to one stream after the other."""
        acknowledged, failed, late = Histogram(), 0, 0.0
        cpu, began = cpu_seconds(os.getpid()), time.monotonic()
        calls, interval = count // self._each, self._each / rate

        async def call(n: int) -> None:
            nonlocal failed
            due = began + n * interval
            stamp = int(due * 1e9)
            events = [Event("bench.tick", {"t": stamp, "n": n, "fill": FILLER}) for _ in range(self._each)]
            try:
                await self._send(self._streams[n % len(self._streams)], events)
            except (TailraceError, OSError, RuntimeError, asyncio.IncompleteReadError):
                failed += self._each
            acknowledged.add(time.monotonic() - due)

        async with asyncio.TaskGroup() as group:
            sent = 0
            while sent < calls:
                now = time.monotonic()
                while sent < calls and began + sent * interval <= now:
                    late = max(late, now - began - sent * interval)
                    group.create_task(call(sent))
                    sent += 1
                await asyncio.sleep(TICK_SECONDS)
        elapsed = time.monotonic() - began
        return {
            "failed": failed,
            "late_ms": late * 1000,
            "seconds": elapsed,
            "core": (cpu_seconds(os.getpid()) - cpu) / elapsed,
            "buckets": acknowledged.buckets,
        }


def _over_http(http: Connections) -> Send:
    lanes = asyncio.Semaphore(MOST_CONNECTIONS)

    async def send(stream: StreamName, events: list[Event]) -> None:
        body = b"\n".join(msgspec.json.encode({"type": event.type, "data": event.data}) for event in events)
        async with lanes:
            await http.post(stream, body, "application/x-ndjson")

    return send


async def _main(streams: range, events_a_call: int, port: int | None) -> None:
    async with AsyncExitStack() as stack:
        if port is None:
            send: Send = (await stack.enter_async_context(open_log(os.environ["BENCH_REDIS_URL"]))).append
        else:
            send = _over_http(stack.enter_context(closing(Connections(port, os.environ["BENCH_TOKEN"]))))
        generator = Generator(send, streams, events_a_call)
        gc.collect()
        gc.freeze()
        while words := (await asyncio.to_thread(sys.stdin.readline)).split():
            print(json.dumps(await generator.run(float(words[1]), int(words[2]))), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        first, streams, events_a_call, *port = map(int, sys.argv[1:])
        runner.run(_main(range(first, first + streams), events_a_call, port[0] if port else None))
