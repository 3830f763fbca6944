"""`slow`: what readers that stall, or read 1 KB/s, do to the others, and what they cost in memory.

In every round each record reaches the readers that read, at a pace, after a flood that is more than a connection may
hold unsent. The rounds differ in who reads: all; all but one; all but many; many only a little. Compared are the delays
of the same readers, who read in every round. In the end the others read too, and have to have everything.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from bench.harness import Histogram, Measure, Report, Sample, difference, interleave, median, say
from bench.patience import patient
from bench.process import cores, rss_bytes
from bench.server import redis_version
from bench.stack import Audience, Heard, Stack, audience, metric, open_log, open_stack, sse_path, ws_path
from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.eventlog.base import Log

__all__ = ["add_arguments", "run"]

STREAM = StreamName.parse("run:slow")
FILLER = "x" * 1_000
MIB = 2**20
BATCH = 250
FLOOD = 1_000
"""Records at once: more than a socket's buffers and the gateway's limit hold together."""
RECEIVE_BUFFER = 65_536
PATIENCE_SECONDS = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `slow`."""
    parser.add_argument("--websocket", action="store_true", help="over WebSocket; without it SSE")
    parser.add_argument("--clients", type=int, default=1_000, help="clients (%(default)s)")
    parser.add_argument("--many", type=int, default=100, help="of them, how many stall or read slowly (%(default)s)")
    parser.add_argument("--slowly", type=int, default=1_024, help="bytes a second of a slow reader (%(default)s)")
    parser.add_argument("--rate", type=int, default=50, help="records a second (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a round's pace (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, in turns (%(default)s)")


async def run(options: argparse.Namespace) -> Report:
    """Measure.

    Raises:
        Missing: no C compiler or no Redis.
    """
    started = time.monotonic()
    async with _open_slow(options) as bench:
        say(f"slow: {options.clients} clients, 1 and {options.many} of them stalled, {options.many} slow, in turns")
        await bench.all_read()  # what the first flood makes grow is not a stalled reader's
        bench.forget()
        samples = await interleave(
            {
                "all read": bench.all_read,
                "1 stalled": bench.one_stalled,
                f"{options.many} stalled": bench.many_stalled,
                f"{options.many} slow": bench.many_slow,
            },
            options.rounds,
        )
        report = _report(options, samples, bench)
    report.setting["redis"] = await redis_version()
    report.seconds = time.monotonic() - started
    return report


class Slow:
    """The rounds."""

    def __init__(
        self, options: argparse.Namespace, served: Stack, log: Log, others: Audience, one: Audience, many: Audience
    ) -> None:
        self.lost = 0
        self.delays: dict[str, Histogram] = {}
        self._options = options
        self._served = served
        self._log = log
        self._others, self._one, self._many = others, one, many
        self._count = {others: options.clients - options.many - 1, one: 1, many: options.many}

    def forget(self) -> None:
        """Begin to count."""
        self.delays = {}

    async def all_read(self) -> Sample:
        """Nobody is slow."""
        return await self._round("all read", None)

    async def one_stalled(self) -> Sample:
        """One reads nothing."""
        return await self._round("1 stalled", self._one)

    async def many_stalled(self) -> Sample:
        """Many read nothing."""
        return await self._round(f"{self._options.many} stalled", self._many)

    async def many_slow(self) -> Sample:
        """Many read a little."""
        return await self._round(f"{self._options.many} slow", self._many, self._options.slowly)

    async def _round(self, name: str, spoiler: Audience | None, slowly: int = 0) -> Sample:
        """The others' delays at a pace, while `spoiler` reads so many bytes a second."""
        paced = int(self._options.rate * self._options.seconds)
        each = FLOOD + paced
        good = [group for group in (self._one, self._many) if group is not spoiler]
        before = rss_bytes(self._served.gateway.pid)
        for group in good:
            group.expect(each, PATIENCE_SECONDS)
        if spoiler is not None and slowly:
            spoiler.slow(slowly, self._options.seconds + 1)
        self._others.expect(FLOOD, PATIENCE_SECONDS)
        for _ in range(FLOOD // BATCH):
            await patient(self._log.append, STREAM, [_event(n) for n in range(BATCH)])
        self._check(self._others, FLOOD, await self._others.heard(PATIENCE_SECONDS + 10))
        self._others.expect(paced, PATIENCE_SECONDS)
        await self._pace(paced)
        heard = await self._others.heard(PATIENCE_SECONDS + 10)
        self._check(self._others, paced, heard)
        behind = await metric(self._served.port, "tailrace_replaying_lanes")
        grown = rss_bytes(self._served.gateway.pid) - before
        if spoiler is not None:
            (spoiler.rest if slowly else spoiler.expect)(each, PATIENCE_SECONDS)
            self._check(spoiler, each, await spoiler.heard(PATIENCE_SECONDS + 10))
        for group in good:
            self._check(group, each, await group.heard(PATIENCE_SECONDS + 10))
        self.delays.setdefault(name, Histogram()).merge(heard.delays)
        return {
            "p50_ms": heard.delays.percentile(50),
            "p99_ms": heard.delays.percentile(99),
            "grown_mib": grown / MIB,
            "behind": behind,
        }

    def _check(self, group: Audience, each: int, heard: Heard) -> None:
        lost = self._count[group] * each - heard.events
        self.lost += lost + heard.missing + heard.duplicate + heard.short + heard.closed

    async def _pace(self, records: int) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        for n in range(records):
            await patient(self._log.append, STREAM, [_event(n)])
            due += 1 / self._options.rate
            await asyncio.sleep(max(0, due - loop.time()))


def _event(n: int) -> Event:
    return Event("bench.tick", {"t": time.monotonic_ns(), "n": n, "fill": FILLER})


@asynccontextmanager
async def _open_slow(options: argparse.Namespace) -> AsyncIterator[Slow]:
    first, others = cores()
    path = ws_path(STREAM) if options.websocket else sse_path(STREAM)
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(open_stack(gateway_on=first, others_on=others))
        log = await stack.enter_async_context(open_log(served.redis_url))
        await patient(log.append, STREAM, [_event(0)])
        groups = [
            await stack.enter_async_context(
                audience(
                    served.port,
                    count,
                    path=path,
                    token=served.token,
                    websocket=options.websocket,
                    receive_buffer=RECEIVE_BUFFER,
                    on=others,
                )
            )
            for count in (options.clients - options.many - 1, 1, options.many)
        ]
        yield Slow(options, served, log, *groups)


def _report(options: argparse.Namespace, samples: dict[str, list[Sample]], bench: Slow) -> Report:
    calm, one, many, slow = samples
    grown = median(samples[calm], "grown_mib")

    def added(name: str) -> float:
        return difference(samples, name, calm, "p99_ms")

    def memory(name: str, readers: int) -> float:
        return max(0.0, (median(samples[name], "grown_mib") - grown) / readers)

    measures = [
        Measure("the others' p99, all read", bench.delays[calm].percentile(99), "ms", note=f"{options.rate} records/s"),
        Measure("1 stalled adds to the others' p99", added(one), "ms", at_most=5),
        Measure("1 stalled takes of the gateway's memory", memory(one, 1), "MiB", at_most=1),
        Measure(f"{many} add to the others' p99", added(many), "ms"),
        Measure(f"{many} take, each", memory(many, options.many), "MiB", at_most=1),
        Measure(f"{slow} ({options.slowly} B/s) add to the others' p99", added(slow), "ms"),
        Measure(f"{slow} take, each", memory(slow, options.many), "MiB", at_most=1),
        Measure("stalled readers that were left behind", median(samples[many], "behind"), at_least=options.many),
        Measure("lost, repeated or late records", bench.lost, at_most=0, note="after all have read again"),
    ]
    setting = {
        "clients": options.clients,
        "transport": "WebSocket" if options.websocket else "SSE",
        "records at once": FLOOD,
        "records/s": options.rate,
        "bytes of data": len(FILLER),
        "rounds": options.rounds,
    }
    report = Report("slow", "Slow and stalled readers: what the others notice", setting, measures, samples)
    report.histograms = {f"the others, {name}": histogram for name, histogram in bench.delays.items()}
    return report
