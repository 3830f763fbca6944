"""`publish`: how fast events get into the log, awaited and concurrent, directly and over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing
from typing import TypeAlias

import msgspec

from bench.harness import Histogram, Measure, Report, Sample, interleave, median, say
from bench.patience import patient
from bench.process import cores, cpu_seconds, pinned
from bench.server import redis_version
from bench.stack import Stack, open_log, open_stack
from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.errors import LogUnavailable
from tailrace.eventlog.base import Log

__all__ = ["add_arguments", "run"]

STREAMS = [StreamName.parse(f"run:publish-{n}") for n in range(100)]
DATA = {"node": "summarise", "index": 0, "text": "x" * 160}
BODY = msgspec.json.encode({"type": "bench.tick", "data": DATA})
PUBLISHERS = 1_000
HTTP_PUBLISHERS = 16
LINES = 500

Send: TypeAlias = Callable[[int], Awaitable[object]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `publish`."""
    parser.add_argument("--rate", type=int, default=1_000, help="awaited events a second (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each awaited round (%(default)s)")
    parser.add_argument("--events", type=int, default=100_000, help="of each concurrent round (%(default)s)")
    parser.add_argument("--http-events", type=int, default=3_000, help="of each HTTP round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, in turns (%(default)s)")


async def run(options: argparse.Namespace) -> Report:
    """Measure.

    Raises:
        Missing: no Redis.
    """
    started = time.monotonic()
    first, others = cores()
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(open_stack(gateway_on=others, others_on=others))
        log = await stack.enter_async_context(open_log(served.redis_url))
        http = stack.enter_context(closing(Connections(served.port, served.token)))
        stack.enter_context(pinned(first))  # the publisher is what is measured
        bench = Bench(options, served, log, http)
        say(f"publish: awaited at {options.rate}/s, then {options.events} concurrent, then over HTTP, in turns")
        contenders = {
            "awaited": bench.awaited,
            "concurrent": bench.concurrent,
            "HTTP": bench.over_http,
            "NDJSON": bench.ndjson,
        }
        samples = await interleave(contenders, options.rounds)
        report = _report(options, samples, bench)
        report.setting["redis"] = await redis_version()
    report.seconds = time.monotonic() - started
    return report


class Connections:
    """HTTP/1.1 connections that are kept: a client that costs little, so that the gateway is what is measured."""

    def __init__(self, port: int, token: str) -> None:
        self._head = f"Host: bench\r\nAuthorization: Bearer {token}\r\n"
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, stream: StreamName, body: bytes, media_type: str) -> None:
        """Publish a body.

        Raises:
            RuntimeError: it was not answered with 201.
        """
        pair = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = pair
        head = f"POST /api/v1/streams/{stream}/events HTTP/1.1\r\n{self._head}Content-Type: {media_type}\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not answer.startswith(b"http/1.1 201"):
            raise RuntimeError(f"not published: {answer.decode()}")
        length = next(line for line in answer.split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        self._idle.append(pair)

    def close(self) -> None:
        """Close what is open."""
        for _, writer in self._idle:
            writer.close()


class Bench:
    """The publishers."""

    def __init__(self, options: argparse.Namespace, served: Stack, log: Log, http: Connections) -> None:
        self.delays = Histogram()
        self.http_delays = Histogram()
        self._options = options
        self._served = served
        self._log = log
        self._http = http

    async def awaited(self) -> Sample:
        """One event each millisecond, whether or not the one before is answered; each waits for its own answer."""
        delays = Histogram()
        count = int(self._options.rate * self._options.seconds)
        loop = asyncio.get_running_loop()
        due, late = loop.time(), 0.0
        async with asyncio.TaskGroup() as group:
            for n in range(count):
                group.create_task(self._timed(self._append, n, delays))
                due += 1 / self._options.rate
                late = max(late, loop.time() - due)
                await asyncio.sleep(max(0, due - loop.time()))
        self.delays.merge(delays)
        return {"p50_ms": delays.percentile(50), "p99_ms": delays.percentile(99), "generator_late_ms": late * 1_000}

    async def concurrent(self) -> Sample:
        """A thousand coroutines that publish one event after the other."""
        return await self._flood(self._append, self._options.events, PUBLISHERS)

    async def over_http(self) -> Sample:
        """A few connections with one event a request."""
        return await self._flood(self._post, self._options.http_events, HTTP_PUBLISHERS, self.http_delays)

    async def ndjson(self) -> Sample:
        """The same with many lines a request."""
        body = b"".join(b'{"type":"bench.tick","data":{"n":%d,"text":"%b"}}\n' % (n, b"x" * 160) for n in range(LINES))
        requests = max(HTTP_PUBLISHERS, self._options.http_events * 10 // LINES)

        async def post(n: int) -> None:
            await self._http.post(STREAMS[n % len(STREAMS)], body, "application/x-ndjson")

        sample = await self._flood(post, requests, HTTP_PUBLISHERS)
        return {"per_second": sample["per_second"] * LINES}

    async def _flood(self, send: Send, count: int, publishers: int, delays: Histogram | None = None) -> Sample:
        counter = iter(range(count))
        pid = self._served.redis.pid
        redis, began = cpu_seconds(pid), time.perf_counter()

        async def publisher() -> None:
            for n in counter:
                if delays is None:
                    await send(n)
                else:
                    await self._timed(send, n, delays)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(publishers, count)):
                group.create_task(publisher())
        elapsed = time.perf_counter() - began
        return {"per_second": count / elapsed, "redis_us": (cpu_seconds(pid) - redis) / count * 1e6}

    async def _append(self, n: int) -> object:
        stream, events = STREAMS[n % len(STREAMS)], [Event("bench.tick", DATA)]
        try:
            return await self._log.append(stream, events)
        except LogUnavailable:
            return await patient(self._log.append, stream, events)

    async def _post(self, n: int) -> None:
        await self._http.post(STREAMS[n % len(STREAMS)], BODY, "application/json")

    async def _timed(self, send: Send, n: int, delays: Histogram) -> None:
        began = time.perf_counter()
        await send(n)
        delays.add(time.perf_counter() - began)


def _report(options: argparse.Namespace, samples: dict[str, list[Sample]], bench: Bench) -> Report:
    rate = f"at {options.rate}/s, {len(STREAMS)} streams"
    measures = [
        Measure("awaited publish, p50", bench.delays.percentile(50), "ms", note=rate),
        Measure("awaited publish, p99", bench.delays.percentile(99), "ms", at_most=10),
        Measure("concurrent, one process", median(samples["concurrent"], "per_second"), "/s", at_least=25_000),
        Measure("concurrent, Redis CPU per event", median(samples["concurrent"], "redis_us"), "µs"),
        Measure("HTTP, one event a request", median(samples["HTTP"], "per_second"), "/s", note="client included"),
        Measure("HTTP, p50", bench.http_delays.percentile(50), "ms", note=f"{HTTP_PUBLISHERS} connections"),
        Measure("HTTP, p99", bench.http_delays.percentile(99), "ms"),
        Measure("HTTP, NDJSON", median(samples["NDJSON"], "per_second"), "/s", note=f"{LINES} events a request"),
    ]
    setting = {
        "events": options.events,
        "publishers": PUBLISHERS,
        "streams": len(STREAMS),
        "rounds": options.rounds,
    }
    report = Report("publish", "Publish: into the log, awaited and concurrent", setting, measures, samples)
    report.histograms = {"awaited": bench.delays, "HTTP": bench.http_delays}
    return report
