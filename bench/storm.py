"""`storm`: everybody comes back at once, some records behind, on one stream and on a stream each.

What is measured is the time until every client is current, what Redis was asked meanwhile, and what the storm does to a
publisher that has nothing to do with it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeAlias

from bench.harness import Histogram, Measure, Report, Sample, interleave, median, ratio, say
from bench.patience import patient
from bench.process import cores, cpu_seconds, pinned
from bench.server import redis_calls, redis_version
from bench.stack import Stack, audience, open_log, open_stack, sse_path
from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.eventlog.base import Log

__all__ = ["add_arguments", "run"]

BYSTANDER = StreamName.parse("run:bystander")
FILLER = "x" * 150
CALM_SECONDS = 3.0
LONGEST_SECONDS = 60.0
WRITERS = 64
READS = ("xrange", "xrevrange")
Places: TypeAlias = "list[tuple[StreamName, str]]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `storm`."""
    parser.add_argument("--clients", type=int, default=2_000, help="SSE clients (%(default)s)")
    parser.add_argument("--behind", type=int, default=100, help="records that each has missed (%(default)s)")
    parser.add_argument("--rate", type=int, default=500, help="events a second published meanwhile (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, in turns (%(default)s)")


async def run(options: argparse.Namespace) -> Report:
    """Measure.

    Raises:
        Missing: no C compiler or no Redis.
    """
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        first, others = cores()
        served = await stack.enter_async_context(open_stack(gateway_on=first, others_on=others))
        stack.enter_context(
            pinned(others)
        )  # the gateway has a core of its own: the bystander waits for Redis, not for it
        log = await stack.enter_async_context(open_log(served.redis_url))
        storm = Storm(options, served, log)
        await patient(log.append, BYSTANDER, [_event(0)])
        say(f"storm: {options.clients} clients, {options.behind} records behind, in turns")
        samples = await interleave(
            {"calm": storm.calm, "one stream": storm.on_one, "a stream each": storm.on_many}, options.rounds
        )
    report = _report(options, samples, storm)
    report.setting["redis"] = await redis_version()
    report.seconds = time.monotonic() - started
    return report


class Storm:
    """The rounds."""

    def __init__(self, options: argparse.Namespace, served: Stack, log: Log) -> None:
        self.lost = 0
        self.published = {name: Histogram() for name in ("calm", "one stream", "a stream each")}
        self.commands: dict[str, dict[str, int]] = {}
        self._options = options
        self._served = served
        self._log = log
        self._round = 0

    async def calm(self) -> Sample:
        """The publisher alone."""
        async with self._publishing("calm") as delays:
            await asyncio.sleep(CALM_SECONDS)
        return {"p99_ms": delays.percentile(99)}

    async def on_one(self) -> Sample:
        """All on one stream."""
        return await self._storm("one stream", await self._streams(1))

    async def on_many(self) -> Sample:
        """Each on a stream of its own."""
        return await self._storm("a stream each", await self._streams(self._options.clients))

    async def _streams(self, count: int) -> Places:
        """Streams that no process has seen yet, with the cursor of who has missed all but their first record."""
        self._round += 1
        names = iter([StreamName.parse(f"run:storm-{self._round}-{n}") for n in range(count)])
        places: Places = []

        async def writer() -> None:
            for name in names:
                [first] = await patient(self._log.append, name, [_event(0)])
                await patient(self._log.append, name, [_event(n) for n in range(self._options.behind)])
                places.append((name, str(first.id)))

        await asyncio.gather(*(writer() for _ in range(WRITERS)))
        return places

    async def _storm(self, name: str, places: Places) -> Sample:
        clients, behind, gateway = self._options.clients, self._options.behind, self._served.gateway.pid
        paths = [sse_path(stream, cursor) for stream, cursor in places]
        asked, cpu = await redis_calls(self._served.redis_url), cpu_seconds(gateway)
        async with (
            self._publishing(name) as delays,
            audience(self._served.port, clients, path=paths, token=self._served.token) as returned,
        ):
            returned.since(behind, LONGEST_SECONDS)
            heard = await returned.heard(LONGEST_SECONDS + 10)
        answered = await redis_calls(self._served.redis_url)
        commands = {key: calls - asked.get(key, 0) for key, calls in answered.items() if calls > asked.get(key, 0)}
        self.commands[name] = commands
        self.lost += clients * behind - heard.events + heard.missing + heard.duplicate + heard.short + heard.closed
        return {
            "seconds": heard.seconds,
            "p99_ms": delays.percentile(99),
            "gateway_seconds": cpu_seconds(gateway) - cpu,
            "audience_seconds": heard.cpu,
            "reads": sum(commands.get(key, 0) for key in READS),
        }

    @asynccontextmanager
    async def _publishing(self, name: str) -> AsyncIterator[Histogram]:
        """Somebody else publishes: an open loop, timed from when each was due."""
        delays = Histogram()
        task = asyncio.create_task(_pace(self._append, self._options.rate, delays))
        try:
            yield delays
        finally:
            task.cancel()
            await asyncio.wait([task])
        self.published[name].merge(delays)

    async def _append(self) -> None:
        await patient(self._log.append, BYSTANDER, [_event(0)])


async def _pace(send: Callable[[], Awaitable[None]], rate: int, delays: Histogram) -> None:
    """Call at a fixed rate until cancelled."""
    loop = asyncio.get_running_loop()

    async def timed(due: float) -> None:
        await send()
        delays.add(loop.time() - due)

    due = loop.time()
    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(timed(due))
            due += 1 / rate
            await asyncio.sleep(max(0, due - loop.time()))


def _event(n: int) -> Event:
    return Event("bench.tick", {"n": n, "fill": FILLER})


def _report(options: argparse.Namespace, samples: dict[str, list[Sample]], storm: Storm) -> Report:
    one, many, clients = samples["one stream"], samples["a stream each"], options.clients
    measures = [
        Measure("one stream: all are current after", median(one, "seconds"), "s", at_most=5),
        Measure("a stream each: all are current after", median(many, "seconds"), "s", at_most=5),
        Measure("one stream: reads of the log", median(one, "reads"), at_most=clients / 20, note="for all clients"),
        Measure("a stream each: reads of the log, per client", median(many, "reads") / clients),
        Measure("one stream: gateway CPU per client", median(one, "gateway_seconds") / clients * 1e6, "µs"),
        Measure("a stream each: gateway CPU per client", median(many, "gateway_seconds") / clients * 1e6, "µs"),
        Measure("the audience's own CPU", median(many, "audience_seconds"), "s"),
        Measure("publish p99, calm", storm.published["calm"].percentile(99), "ms", note=f"{options.rate} events/s"),
        Measure("publish p99, one stream / calm", ratio(samples, "one stream", "calm", "p99_ms"), "x", at_most=2),
        Measure("publish p99, a stream each / calm", ratio(samples, "a stream each", "calm", "p99_ms"), "x", at_most=2),
        Measure("lost or repeated records", storm.lost, at_most=0),
    ]
    setting = {"clients": clients, "records behind": options.behind, "rounds": options.rounds}
    report = Report("storm", "Storm: everybody comes back at once", setting, measures, samples)
    report.histograms = {f"publish, {name}": histogram for name, histogram in storm.published.items()}
    for name, commands in storm.commands.items():
        asked = ", ".join(f"{key} {calls}" for key, calls in sorted(commands.items(), key=lambda item: -item[1]))
        report.notes.append(f"{name}: Redis commands of the last round, the publisher's included: {asked}")
    report.notes.append(f"load average at the end {os.getloadavg()[0]:.2f}")
    return report
