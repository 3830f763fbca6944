"""`resume`: anywhere into a stream of a million records, and all of it as fast as one reader takes it."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

from bench.harness import Histogram, Measure, Report, Sample, interleave, median, say
from bench.patience import patient
from bench.server import redis_version
from bench.stack import Stack, audience, open_log, open_stack, request, sse_path
from tailrace.client.client import Tailrace
from tailrace.client.direct import DirectLog
from tailrace.core.event import Event, Record
from tailrace.core.ids import EntryId
from tailrace.core.kinds import Kinds, StreamKind
from tailrace.core.names import StreamName
from tailrace.eventlog.base import Log

__all__ = ["add_arguments", "first_event", "run"]

STREAM = StreamName.parse("run:resume")
FILLER = "x" * 150
BATCH = 1_000
RECORD = re.compile(rb'^data: \{"id":"([0-9-]+)"')
LONGEST_SECONDS = 300.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `resume`."""
    parser.add_argument("--records", type=int, default=1_000_000, help="records of the stream (%(default)s)")
    parser.add_argument("--places", type=int, default=200, help="random places to go on from, each round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, in turns (%(default)s)")


async def run(options: argparse.Namespace) -> Report:
    """Measure.

    Raises:
        Missing: no C compiler or no Redis.
    """
    started = time.monotonic()
    kinds = Kinds([StreamKind(name=STREAM.kind, max_length=options.records + BATCH)])
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(open_stack())
        log = await stack.enter_async_context(open_log(served.redis_url, kinds=kinds))
        say(f"resume: writing {options.records} records")
        began = time.monotonic()
        places = await _fill(log, options.records)
        filled = time.monotonic() - began
        gc.collect()
        gc.freeze()  # a million ids, that no reader has: the collector would walk over them in the middle of a read
        resume = Resume(options, served, places, Tailrace.on(DirectLog.on(log, kinds)))
        stack.push_async_callback(resume.client.aclose)
        samples = await interleave(
            {
                "first, in process": resume.first_in_process,
                "first, SSE": resume.first_over_sse,
                "all, in process": resume.all_in_process,
                "all, SSE": resume.all_over_sse,
            },
            options.rounds,
        )
    report = _report(options, samples, resume)
    report.notes.append(f"the records were written with {options.records / filled:,.0f}/s, {BATCH} a call")
    report.setting["redis"] = await redis_version()
    report.seconds = time.monotonic() - started
    return report


class Resume:
    """The readers."""

    def __init__(self, options: argparse.Namespace, served: Stack, places: Sequence[EntryId], client: Tailrace) -> None:
        self.client = client
        self.wrong = 0
        self.in_process = Histogram()
        self.over_sse = Histogram()
        self._options = options
        self._served = served
        self._places = places
        self._random = random.Random(7)

    async def first_in_process(self) -> Sample:
        """From asking to the first record, one reader after the other."""
        return await self._firsts(self._first_record, self.in_process)

    async def first_over_sse(self) -> Sample:
        """The same, connecting included."""
        return await self._firsts(self._first_event, self.over_sse)

    async def _firsts(self, ask: Callable[[str], Awaitable[str]], all_delays: Histogram) -> Sample:
        delays = Histogram()
        for _ in range(self._options.places):
            n = self._random.randrange(len(self._places) - 1)
            began = time.perf_counter()
            found = await ask(str(self._places[n]))
            delays.add(time.perf_counter() - began)
            self.wrong += found != str(self._places[n + 1])
        all_delays.merge(delays)
        return {"p50_ms": delays.percentile(50), "p99_ms": delays.percentile(99)}

    async def _first_record(self, cursor: str) -> str:
        async with self.client.subscribe(str(STREAM), since=cursor) as subscription:
            async for item in subscription:
                return str(item.id) if isinstance(item, Record) else repr(item)
        return "nothing"

    async def _first_event(self, cursor: str) -> str:
        return await first_event(self._served, STREAM, cursor)

    async def all_in_process(self) -> Sample:
        """One `async for` over everything."""
        records, expected = 0, iter(self._places)
        began = time.perf_counter()
        async with self.client.subscribe(str(STREAM), since="0") as subscription:
            async for item in subscription:
                self.wrong += not isinstance(item, Record) or item.id != next(expected)
                records += 1
                if records == len(self._places):
                    break
        return {"per_second": records / (time.perf_counter() - began)}

    async def all_over_sse(self) -> Sample:
        """One SSE client that takes all."""
        paths = sse_path(STREAM, "0")
        records = len(self._places)
        async with audience(self._served.port, 1, path=paths, token=self._served.token) as reader:
            reader.since(records, LONGEST_SECONDS)
            heard = await reader.heard(LONGEST_SECONDS + 10)
        self.wrong += records - heard.events + heard.missing + heard.duplicate
        return {"per_second": heard.events / heard.seconds}


async def first_event(served: Stack, stream: StreamName, cursor: str) -> str:
    """Connect, and return the id of the first record that comes over SSE."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request(sse_path(stream, cursor), served.token))
    try:
        async with asyncio.timeout(10):
            while line := await reader.readline():
                if found := RECORD.search(line):
                    return found[1].decode()
        return "nothing"
    finally:
        writer.transport.abort()


async def _fill(log: Log, records: int) -> list[EntryId]:
    """Write the stream, and return all ids."""
    ids: list[EntryId] = []
    for first in range(0, records, BATCH):
        events = [Event("bench.tick", {"n": n, "fill": FILLER}) for n in range(first, min(first + BATCH, records))]
        ids += [one.id for one in await patient(log.append, STREAM, events)]
    return ids


def _report(options: argparse.Namespace, samples: dict[str, list[Sample]], resume: Resume) -> Report:
    own, sse = resume.in_process, resume.over_sse
    measures = [
        Measure("first record, in process, p50", own.percentile(50), "ms", note="from a random place"),
        Measure("first record, in process, p99", own.percentile(99), "ms", at_most=25),
        Measure("first record, SSE, p50", sse.percentile(50), "ms", note="connecting included"),
        Measure("first record, SSE, p99", sse.percentile(99), "ms", at_most=25),
        Measure("all of it, in process", median(samples["all, in process"], "per_second"), "/s", at_least=100_000),
        Measure("all of it, SSE", median(samples["all, SSE"], "per_second"), "/s", at_least=50_000),
        Measure("wrong, lost or repeated records", resume.wrong, at_most=0),
    ]
    setting = {"records": options.records, "places a round": options.places, "rounds": options.rounds}
    report = Report("resume", "Resume: anywhere into a long stream", setting, measures, samples)
    report.histograms = {"first record, in process": own, "first record, SSE": sse}
    report.notes.append(f"load average at the end {os.getloadavg()[0]:.2f}")
    return report
