"""`load`: many SSE connections with a stream each, events at a fixed rate, everything on the same cores.

The load generators, Redis, the gateway and the audience share the machine. Every event carries the time at which it was
due, so that what a client waited includes all waiting.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from bench.generator import FILLER, stream_of
from bench.harness import Histogram, Measure, Report, say
from bench.process import Child, child, cpu_seconds, rss_bytes
from bench.sender import sender
from bench.server import redis_version
from bench.stack import Audience, Heard, Stack, audience, open_stack, sse_path

__all__ = ["Load", "Outcome", "add_arguments", "open_load", "run"]

GRACE_SECONDS = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `load`."""
    parser.add_argument("--clients", type=int, default=2_000, help="SSE connections, with a stream each (%(default)s)")
    parser.add_argument("--rate", type=int, default=10_000, help="events a second, all streams together (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (%(default)s)")
    parser.add_argument(
        "--generators", type=int, default=0, help="Python processes that publish; 0: one in C with the same calls"
    )
    parser.add_argument("--ndjson-seconds", type=float, default=20.0, help="the same over HTTP; 0: none (%(default)g)")
    parser.add_argument("--lines", type=int, default=20, help="events of one NDJSON request (%(default)s)")


async def run(options: argparse.Namespace) -> Report:
    """Measure.

    Raises:
        Missing: no C compiler or no Redis.
    """
    started = time.monotonic()
    setting = {"clients": options.clients, "streams": options.clients, "events/s": options.rate}
    setting["publishers"] = f"{options.generators} in Python" if options.generators else "one in C"
    report = Report("load", "Load: many connections with a stream each, load generator included", setting)
    async with open_stack() as served:
        async with open_load(served, options.clients, generators=options.generators) as load:
            say(f"load: {options.clients} clients, {options.rate} events/s for {options.seconds:g} s")
            _add(report, "", await load.run(options.rate, options.seconds), targets=True)
        if options.ndjson_seconds:
            say(f"load: the same as NDJSON, {options.lines} events a request, {options.ndjson_seconds:g} s")
            async with open_load(served, options.clients, lines=options.lines) as load:
                _add(report, "NDJSON: ", await load.run(options.rate, options.ndjson_seconds), targets=False)
    report.setting["redis"] = await redis_version()
    report.seconds = time.monotonic() - started
    return report


@dataclass
class Outcome:
    """One run."""

    events: int
    heard: Heard
    failed: int
    lost: int
    """Not delivered, repeated, out of order or not stored."""
    acknowledged: Histogram
    late_ms: float
    """How late the generator itself was at worst."""
    cores: dict[str, float]
    """CPU seconds a second, by process."""
    gateway_rss: int
    load_average: float


class Load:
    """Generators, with as many streams each, and an audience on a running gateway."""

    def __init__(
        self, served: Stack, clients: int, lines: int, generators: Sequence[Child], heard_by: Audience
    ) -> None:
        self._served = served
        self._clients = clients
        self._lines = lines
        self._generators = generators
        self._audience = heard_by

    async def run(self, rate: float, seconds: float) -> Outcome:
        """Publish for so long, and wait until all is delivered; every stream gets the same number of events."""
        turn = self._clients * self._lines
        each = max(1, round(rate * seconds / turn)) * self._lines
        count = each * self._clients
        longest = count / rate + GRACE_SECONDS
        pids = {"gateway": self._served.gateway.pid, "Redis": self._served.redis.pid, "audience": self._audience.pid}
        before, began = {name: cpu_seconds(pid) for name, pid in pids.items()}, time.monotonic()
        self._audience.expect(each, longest)
        several = len(self._generators)
        for generator in self._generators:
            generator.tell(f"run {rate / several} {count // several}")
        said = [json.loads(await generator.line(longest + GRACE_SECONDS)) for generator in self._generators]
        failed, acknowledged = sum(one["failed"] for one in said), Histogram()
        for one in said:
            acknowledged.merge(Histogram(one["buckets"]))
        heard = await self._audience.heard(longest + GRACE_SECONDS)
        elapsed = time.monotonic() - began
        busy = {name: (cpu_seconds(pid) - before[name]) / elapsed for name, pid in pids.items()}
        return Outcome(
            events=count,
            heard=heard,
            failed=failed,
            lost=count - heard.events + heard.missing + heard.duplicate + heard.short + heard.closed + failed,
            acknowledged=acknowledged,
            late_ms=max(one["late_ms"] for one in said),
            cores={**busy, "publisher": sum(one["core"] for one in said)},
            gateway_rss=rss_bytes(self._served.gateway.pid),
            load_average=os.getloadavg()[0],
        )


@asynccontextmanager
async def open_load(served: Stack, clients: int, *, lines: int = 0, generators: int = 0) -> AsyncIterator[Load]:
    """Connect the audience and start what publishes.

    Args:
        served: where to.
        clients: connections, and streams.
        lines: publish over HTTP, so many events a request.
        generators: so many processes in Python; 0: without `lines` the sender in C, with them one.

    Raises:
        ValueError: the streams cannot be shared out evenly.
    """
    if lines:
        generators = generators or 1
    if generators and clients % generators:
        raise ValueError(f"{clients} streams are not for {generators} generators")
    names = [stream_of(n) for n in range(clients)]
    paths = [sse_path(name) for name in names]
    async with AsyncExitStack() as stack:
        if generators:
            argvs = _python(served, clients // generators, lines, generators)
            env = {"BENCH_REDIS_URL": served.redis_url, "BENCH_TOKEN": served.token}
            publishing = [await stack.enter_async_context(child(argv, env=env)) for argv in argvs]
        else:
            publishing = [await stack.enter_async_context(sender(served.redis, names, filler=FILLER))]
        heard_by = await stack.enter_async_context(audience(served.port, clients, path=paths, token=served.token))
        load = Load(served, clients, lines or 1, publishing, heard_by)
        await load.run(clients, 1)  # every stream exists, every connection is warm
        yield load


def _python(served: Stack, streams: int, lines: int, generators: int) -> list[list[str]]:
    tail = [str(streams), str(lines or 1), *([str(served.port)] if lines else [])]
    return [[sys.executable, "-m", "bench.generator", str(n * streams), *tail] for n in range(generators)]


def _add(report: Report, prefix: str, outcome: Outcome, *, targets: bool) -> None:
    delays = outcome.heard.delays
    most = (200.0, 500.0) if targets else (None, None)
    busy = outcome.cores
    report.measures += [
        Measure(f"{prefix}publish to client, p50", delays.percentile(50), "ms", note=f"{outcome.events} events"),
        Measure(f"{prefix}publish to client, p95", delays.percentile(95), "ms", at_most=most[0]),
        Measure(f"{prefix}publish to client, p99", delays.percentile(99), "ms", at_most=most[1]),
        Measure(f"{prefix}publish to client, max", delays.percentile(100), "ms"),
        Measure(f"{prefix}due to acknowledged, p99", outcome.acknowledged.percentile(99), "ms"),
        *(Measure(f"{prefix}{name}'s CPU", busy[name] * 100, "% of a core") for name in busy),
        Measure(f"{prefix}a generator late, at worst", outcome.late_ms, "ms"),
        Measure(f"{prefix}gateway memory", outcome.gateway_rss / 2**20, "MiB"),
        Measure(f"{prefix}lost, repeated or late records", outcome.lost, at_most=0),
    ]
    if delays.count < outcome.events:
        report.notes.append(f"{prefix}delays of {delays.count} of {outcome.events} deliveries were seen")
    if outcome.failed:
        report.notes.append(f"{prefix}{outcome.failed} of the lost were not acknowledged: their publisher was told")
    report.notes.append(f"{prefix}load average at the end {outcome.load_average:.2f}")
    report.histograms[f"{prefix}publish to client"] = delays
    report.histograms[f"{prefix}due to acknowledged"] = outcome.acknowledged
