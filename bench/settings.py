"""`settings`: what Redis settings and ways to reach it do to appends, reads and memory; docs/redis-tuning.md shows it.

Every variant has a Redis of its own; they take turns. The `other` logs publish into the same Redis from this process.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from redis.asyncio import Redis

from bench.certificate import self_signed
from bench.harness import Histogram, Measure, Report, Sample, interleave, median, ratio, say
from bench.patience import patient
from bench.process import Cores, cores, free_port, pinned, private_folder
from bench.server import Server, open_redis, redis_version
from bench.stack import open_log
from tailrace.core.event import Event
from tailrace.core.ids import EntryId
from tailrace.core.kinds import Kinds, StreamKind
from tailrace.core.names import StreamName
from tailrace.eventlog.base import Log

__all__ = ["BASE", "VARIANTS", "Variant", "add_arguments", "run"]

STREAMS = [StreamName.parse(f"run:settings-{n}") for n in range(100)]
LONG = StreamName.parse("run:long")
RECORDS = 10_000
BATCH = 1_000
PAGES = 20
KINDS = Kinds([StreamKind(name=LONG.kind, max_length=RECORDS + BATCH)])


@dataclass(frozen=True)
class Variant:
    """One thing that is otherwise than in the first one."""

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    way: str = "unix"
    """unix, tcp or tls."""
    publishers: int = 200
    logs: int = 1


BASE = Variant("as `tailrace dev` sets it: everysec, unix socket, 200 publishers")
VARIANTS = (
    BASE,
    Variant("`appendfsync always`", {"appendfsync": "always"}),
    Variant("`appendfsync no`", {"appendfsync": "no"}),
    Variant("`appendonly no`", {"appendonly": "no"}),
    Variant("`stream-node-max-bytes 1024`", {"stream-node-max-bytes": "1024"}),
    Variant("`stream-node-max-bytes 16384`", {"stream-node-max-bytes": "16384"}),
    Variant(
        "`stream-node-max-bytes 65536`, `-entries 1000`",
        {"stream-node-max-bytes": "65536", "stream-node-max-entries": "1000"},
    ),
    Variant("`stream-node-max-entries 10`", {"stream-node-max-entries": "10"}),
    Variant("`hz 100`", {"hz": "100"}),
    Variant("`io-threads 2`", {"io-threads": "2"}),
    Variant("`io-threads 2`, `io-threads-do-reads yes`", {"io-threads": "2", "io-threads-do-reads": "yes"}),
    Variant("`activedefrag yes`", {"activedefrag": "yes"}),
    Variant("TCP on loopback", way="tcp"),
    Variant("TLS on loopback", way="tls"),
    Variant("1 publisher", publishers=1),
    Variant("16 publishers", publishers=16),
    Variant("1 000 publishers", publishers=1_000),
    Variant("4 logs (4 connections), 50 publishers each", logs=4),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `settings`."""
    parser.add_argument("--awaited", type=int, default=300, help="awaited appends of a round (%(default)s)")
    parser.add_argument("--concurrent", type=int, default=6_000, help="concurrent appends of a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, in turns (%(default)s)")
    parser.add_argument("--only", default="", help="variants with this in their name, beside the first")


async def run(options: argparse.Namespace) -> Report:
    """Measure.

    Raises:
        Missing: no Redis.
    """
    started = time.monotonic()
    first, others = cores()
    notes: list[str] = []
    async with AsyncExitStack() as stack:
        setups: dict[str, Setup] = {}
        for variant in VARIANTS:
            if variant is not BASE and options.only not in variant.name:
                continue
            try:
                setups[variant.name] = await stack.enter_async_context(_open_setup(options, variant, others))
            except RuntimeError as exc:
                notes.append(f"{variant.name} was not measured: {exc}")
        stack.enter_context(pinned(first))
        say(f"settings: {len(setups)} variants in turns")
        samples = await interleave({name: setup.measure for name, setup in setups.items()}, options.rounds)
    report = _report(options, samples)
    report.notes += notes
    report.setting["redis"] = await redis_version()
    report.seconds = time.monotonic() - started
    return report


class Setup:
    """One variant, running."""

    def __init__(self, options: argparse.Namespace, variant: Variant, server: Server, logs: list[Log]) -> None:
        self._options = options
        self._variant = variant
        self._server = server
        self._logs = logs
        self._ids: list[EntryId] = []
        self._bytes = 0

    async def measure(self) -> Sample:
        """One round."""
        if not self._ids:
            await self._fill()
        log, delays = self._logs[0], Histogram()
        for n in range(self._options.awaited):
            began = time.perf_counter()
            await patient(log.append, STREAMS[n % len(STREAMS)], [_event(n)])
            delays.add(time.perf_counter() - began)
        return {
            "p50_ms": delays.percentile(50),
            "p99_ms": delays.percentile(99),
            "per_second": await self._flood(),
            "page_ms": await self._pages(),
            "mib": self._bytes / 2**20,
        }

    async def _fill(self) -> None:
        for first in range(0, RECORDS, BATCH):
            events = [_event(n) for n in range(first, first + BATCH)]
            self._ids += [one.id for one in await patient(self._logs[0].append, LONG, events)]
        async with Redis.from_url(self._server.url) as redis:
            self._bytes = await redis.memory_usage(f"tailrace:run:{{{LONG.name}}}:events", samples=0) or 0

    async def _flood(self) -> float:
        """Appends a second of all publishers together, each with one under way."""
        counter = iter(range(self._options.concurrent))

        async def publisher(log: Log) -> None:
            for n in counter:
                await patient(log.append, STREAMS[n % len(STREAMS)], [_event(n)])

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for n in range(self._variant.publishers):
                group.create_task(publisher(self._logs[n % len(self._logs)]))
        return float(self._options.concurrent / (time.perf_counter() - began))

    async def _pages(self) -> float:
        """The median time of a page of a thousand records, from anywhere."""
        delays = Histogram()
        for _ in range(PAGES):
            after = random.choice(self._ids[:-BATCH])
            began = time.perf_counter()
            await patient(self._logs[0].read, LONG, after, limit=BATCH)
            delays.add(time.perf_counter() - began)
        return delays.percentile(50)


def _event(n: int) -> Event:
    return Event("bench.tick", {"n": n, "text": "x" * 160})


@asynccontextmanager
async def _open_setup(options: argparse.Namespace, variant: Variant, others: Cores) -> AsyncIterator[Setup]:
    async with AsyncExitStack() as stack:
        settings = dict(variant.settings)
        url = ""
        if variant.way == "tcp":
            port = await free_port()
            settings |= {"port": str(port), "bind": "127.0.0.1"}
            url = f"redis://127.0.0.1:{port}"
        elif variant.way == "tls":
            port = await free_port()
            folder = await stack.enter_async_context(private_folder())
            cert, key = self_signed(folder)
            settings |= {"tls-port": str(port), "tls-auth-clients": "no", "bind": "127.0.0.1"}
            settings |= {"tls-cert-file": str(cert), "tls-key-file": str(key), "tls-ca-cert-file": str(cert)}
            url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={cert}"
        server = await stack.enter_async_context(open_redis(settings, on=others))
        opened = (open_log(url or server.url, kinds=KINDS) for _ in range(variant.logs))
        yield Setup(options, variant, server, [await stack.enter_async_context(log) for log in opened])


def _report(options: argparse.Namespace, samples: dict[str, list[Sample]]) -> Report:
    base = samples[BASE.name]
    measures = [
        Measure("awaited append, p50", median(base, "p50_ms"), "ms", note=BASE.name),
        Measure("awaited append, p99", median(base, "p99_ms"), "ms"),
        Measure("concurrent appends", median(base, "per_second"), "/s"),
        Measure("a page of 1 000 records, p50", median(base, "page_ms"), "ms"),
        Measure("10 000 records", median(base, "mib"), "MiB"),
    ]
    for name in samples:
        if name != BASE.name:
            measures += [
                Measure(f"{name}: awaited p50 / base", ratio(samples, name, BASE.name, "p50_ms"), "x"),
                Measure(f"{name}: concurrent / base", ratio(samples, name, BASE.name, "per_second"), "x"),
            ]
    setting = {
        "awaited a round": options.awaited,
        "concurrent a round": options.concurrent,
        "bytes of data": 200,
        "streams": len(STREAMS),
        "rounds": options.rounds,
    }
    report = Report("settings", "Settings of Redis: what each does", setting, measures, samples)
    report.notes.append("docs/redis-tuning.md has the whole table")
    return report
