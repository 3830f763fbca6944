"""`runs`: what an application sees of a run's events: `EventStore.add`, and how soon 100 viewers have them."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from bench.harness import Histogram, Measure, Report, Sample, interleave, say
from bench.process import cores, pinned
from bench.server import redis_version
from bench.stack import Stack, open_stack, sse_path
from tailrace.core.names import StreamName
from tailrace.features.runs.events import EventStore, StreamEvent

__all__ = ["add_arguments", "run"]

TEXT = "x" * 160
MARK = b'"sent":'
KEPT = 10_000
"""So many events of a run are readable at least."""
SETTLE_SECONDS = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `runs`."""
    parser.add_argument("--events", type=int, default=10_500, help="of one run, awaited one by one (%(default)s)")
    parser.add_argument("--viewers", type=int, default=100, help="of one run over SSE (%(default)s)")
    parser.add_argument("--rate", type=int, default=50, help="events a second to the viewers (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round with viewers (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds, in turns (%(default)s)")


async def run(options: argparse.Namespace) -> Report:
    """Measure.

    Raises:
        Missing: no Redis.
    """
    started = time.monotonic()
    first, others = cores()
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(open_stack(gateway_on=others, others_on=others))
        store = await stack.enter_async_context(EventStore(served.redis_url))
        stack.enter_context(pinned(first))
        bench = Bench(options, served, store)
        say(f"runs: {options.events} events awaited one by one, then {options.viewers} viewers, in turns")
        samples = await interleave({"add": bench.add, "push": bench.push}, options.rounds)
        readable = len(await store.get_events("bench-add-1", limit=options.events))
        report = _report(options, samples, bench, readable)
        report.setting["redis"] = await redis_version()
    report.seconds = time.monotonic() - started
    return report


class Bench:
    """An application that writes events of a run, and its viewers."""

    def __init__(self, options: argparse.Namespace, served: Stack, store: EventStore) -> None:
        self.adds = Histogram()
        self.pushes = Histogram()
        self.missing = 0
        self._options = options
        self._served = served
        self._store = store
        self._round = 0

    async def add(self) -> Sample:
        """One event after the other, each awaited."""
        delays = Histogram()
        self._round += 1
        for n in range(self._options.events):
            began = time.perf_counter()
            await self._store.add(f"bench-add-{self._round}", StreamEvent("node.output", {"n": n, "text": TEXT}))
            delays.add(time.perf_counter() - began)
        self.adds.merge(delays)
        return {"p50_ms": delays.percentile(50), "p99_ms": delays.percentile(99)}

    async def push(self) -> Sample:
        """Events at a fixed rate, from the call of `add` to the last byte at each viewer."""
        delays = Histogram()
        count = int(self._options.rate * self._options.seconds)
        name = f"bench-push-{time.monotonic_ns()}"
        async with AsyncExitStack() as stack:
            viewers = [await stack.enter_async_context(self._viewer(name)) for _ in range(self._options.viewers)]
            reading = [asyncio.create_task(_read(reader, count, delays)) for reader in viewers]
            due = time.perf_counter()
            for n in range(count):
                data = {"sent": time.perf_counter(), "n": n, "text": TEXT}
                await self._store.add(name, StreamEvent("node.output", data))
                due += 1 / self._options.rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await asyncio.wait(reading, timeout=SETTLE_SECONDS)
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
        self.missing += count * self._options.viewers - delays.count
        self.pushes.merge(delays)
        return {"p95_ms": delays.percentile(95), "p99_ms": delays.percentile(99)}

    @asynccontextmanager
    async def _viewer(self, name: str) -> AsyncIterator[asyncio.StreamReader]:
        """One SSE connection that is live."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._served.port)
        try:
            path = sse_path(StreamName.parse(f"run:{name}"), "0")
            head = f"GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {self._served.token}\r\n\r\n"
            writer.write(head.encode())
            await reader.readuntil(b"stream.open")
            yield reader
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader, count: int, delays: Histogram) -> None:
    """Note when each event came, by the time that stands in it."""
    seen = 0
    while seen < count:
        block = await reader.readuntil(b"\n\n")
        place = block.find(MARK)
        if place >= 0:
            delays.add(time.perf_counter() - float(block[place + len(MARK) :].partition(b",")[0]))
            seen += 1


def _report(options: argparse.Namespace, samples: dict[str, list[Sample]], bench: Bench, readable: int) -> Report:
    viewers = f"{options.viewers} viewers at {options.rate}/s, load generator included"
    enough = min(KEPT, options.events)
    measures = [
        Measure("EventStore.add, p50", bench.adds.percentile(50), "ms", at_most=5, note="awaited one by one"),
        Measure("EventStore.add, p99", bench.adds.percentile(99), "ms", at_most=10),
        Measure("readable of one run", readable, "events", at_least=enough, note=f"of {options.events}"),
        Measure("from `add` to a viewer, p50", bench.pushes.percentile(50), "ms"),
        Measure("from `add` to a viewer, P95", bench.pushes.percentile(95), "ms", at_most=100, note=viewers),
        Measure("from `add` to a viewer, P99", bench.pushes.percentile(99), "ms"),
        Measure("not delivered", bench.missing, "events", at_most=0),
    ]
    setting = {"events": options.events, "viewers": options.viewers, "rate": options.rate, "rounds": options.rounds}
    report = Report("runs", "Runs: an event store, and how soon its viewers have an event", setting, measures, samples)
    report.histograms = {"add": bench.adds, "push": bench.pushes}
    return report
