"""`gc`: the pauses of Python's garbage collector under load, with its own thresholds, frozen, and as we set it.

Three gateways with as many connections, each with a stream of its own; in turns each is given the load, and then as
many readers again who come back at once and want all of it.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import AsyncExitStack
from typing import Any

from bench.generator import stream_of
from bench.harness import Contender, Histogram, Measure, Report, Sample, interleave, median, say
from bench.load import Load, open_load
from bench.process import cpu_seconds, rss_bytes
from bench.server import redis_version
from bench.stack import Stack, audience, open_stack, sse_path

__all__ = ["add_arguments", "run"]

WAYS = {"python": "Python's thresholds", "frozen": "the same, frozen", "ours": "ours"}
MIB = 2**20
LONGEST_SECONDS = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gc`."""
    parser.add_argument("--clients", type=int, default=2_000, help="SSE connections, with a stream each (%(default)s)")
    parser.add_argument("--rate", type=int, default=10_000, help="events a second, all streams together (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds, in turns (%(default)s)")


async def run(options: argparse.Namespace) -> Report:
    """Measure.

    Raises:
        Missing: no C compiler or no Redis.
    """
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        say(f"gc: {options.clients} clients on each of three gateways, {options.rate} events/s in turns")
        collectors: list[Collector] = []
        for way in WAYS:
            served = await stack.enter_async_context(open_stack(env={"BENCH_COLLECTOR": way}))
            load = await stack.enter_async_context(open_load(served, options.clients))
            collectors.append(Collector(options, way, served, load))
        contenders: dict[str, Contender] = {f"{WAYS[one.way]}, load": one.loaded for one in collectors}
        contenders |= {f"{WAYS[one.way]}, return": one.returned for one in collectors}
        samples = await interleave(contenders, options.rounds)
        report = _report(options, samples, collectors)
    report.setting["redis"] = await redis_version()
    report.seconds = time.monotonic() - started
    return report


class Collector:
    """One gateway."""

    def __init__(self, options: argparse.Namespace, way: str, served: Stack, load: Load) -> None:
        self.way = way
        self.pauses = {"load": Histogram(), "return": Histogram()}
        self.lost = 0
        self._each = 1  # `open_load` has published one to each stream
        self._options = options
        self._served = served
        self._load = load

    async def loaded(self) -> Sample:
        """The load, and what the collector did meanwhile."""
        await self._told()
        began = time.monotonic()
        outcome = await self._load.run(self._options.rate, self._options.seconds)
        sample = await self._sample("load", time.monotonic() - began)
        self._each += outcome.events // self._options.clients
        self.lost += outcome.lost
        return {**sample, "p99_ms": outcome.heard.delays.percentile(99), "core": outcome.cores["gateway"]}

    async def returned(self) -> Sample:
        """As many more readers at once, from the first record on."""
        await self._told()
        clients, pid = self._options.clients, self._served.gateway.pid
        paths = [sse_path(stream_of(n), "0") for n in range(clients)]
        cpu, began = cpu_seconds(pid), time.monotonic()
        async with audience(self._served.port, clients, path=paths, token=self._served.token) as returned:
            returned.since(self._each, LONGEST_SECONDS)
            heard = await returned.heard(LONGEST_SECONDS + 10)
            used, elapsed = cpu_seconds(pid) - cpu, time.monotonic() - began
            sample = await self._sample("return", elapsed)
        self.lost += clients * self._each - heard.events + heard.missing + heard.duplicate + heard.short + heard.closed
        return {**sample, "core": used / elapsed, "current_after": heard.seconds}

    async def _sample(self, what: str, elapsed: float) -> dict[str, float]:
        said = await self._told()
        pauses = Histogram(said["buckets"])
        self.pauses[what].merge(pauses)
        return {
            "pauses": pauses.count,
            "full": said["full"],
            "longest_ms": said["longest"] * 1_000,
            "share": said["seconds"] / elapsed,
            "rss_mib": rss_bytes(self._served.gateway.pid) / MIB,
        }

    async def _told(self) -> dict[str, Any]:
        self._served.gateway.tell("gc")
        said: dict[str, Any] = json.loads(await self._served.gateway.line(30))
        return said


def _report(options: argparse.Namespace, samples: dict[str, list[Sample]], collectors: list[Collector]) -> Report:
    measures: list[Measure] = []
    for what in ("load", "return"):
        for one in collectors:
            rounds, pauses = samples[f"{WAYS[one.way]}, {what}"], one.pauses[what]
            name = f"{what}, {WAYS[one.way]}"
            measures += [
                Measure(f"{name}: pauses a round", median(rounds, "pauses")),
                Measure(f"{name}: a pause, p50", pauses.percentile(50), "ms"),
                Measure(f"{name}: a pause, p99", pauses.percentile(99), "ms"),
                Measure(f"{name}: the longest", max(sample["longest_ms"] for sample in rounds), "ms"),
                Measure(f"{name}: collecting", median(rounds, "share") * 100, "% of a core"),
                Measure(f"{name}: gateway's CPU", median(rounds, "core") * 100, "% of a core"),
                Measure(f"{name}: gateway memory", median(rounds, "rss_mib"), "MiB"),
            ]
        python, ours = (samples[f"{WAYS[way]}, {what}"] for way in ("python", "ours"))
        share = median(ours, "share") / max(1e-9, median(python, "share"))
        measures.append(Measure(f"{what}: collecting, ours / Python's", share, "x", at_most=1))
    measures.append(Measure("lost, repeated or late records", sum(one.lost for one in collectors), at_most=0))
    setting = {
        "clients": options.clients,
        "streams": options.clients,
        "events/s": options.rate,
        "seconds a round": options.seconds,
        "rounds": options.rounds,
    }
    report = Report("gc", "Garbage collection: pauses under load", setting, measures, samples)
    for one in collectors:
        report.histograms |= {f"pauses, {what}, {WAYS[one.way]}": pauses for what, pauses in one.pauses.items()}
    return report
