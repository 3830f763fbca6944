"""`append`: many events a call, small and large ones, the time Redis takes for them, and what idempotency costs it."""

from __future__ import annotations

import argparse
import time
from contextlib import AsyncExitStack

from bench.harness import Contender, Histogram, Measure, Report, Sample, interleave, median, ratio, say
from bench.numbered import open_numbered
from bench.process import cores, cpu_seconds, pinned
from bench.server import Server, open_redis, redis_time, redis_version
from bench.stack import open_log
from tailrace.client.client import Tailrace
from tailrace.client.direct import DirectLog
from tailrace.core.event import Event
from tailrace.core.kinds import Kinds

__all__ = ["add_arguments", "run"]

KIB = 1_024
STREAMS = 50
BATCHES = (1, 10, 100, 1_000)
SIZES = (1, 100)
TURNS = 20
"""Rounds of idempotency to one of the others: few rounds would show the moods of the machine."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `append`."""
    parser.add_argument("--events", type=int, default=10_000, help="of each round of batches (%(default)s)")
    parser.add_argument("--large", type=int, default=300, help="events of each round of large ones (%(default)s)")
    parser.add_argument("--numbered", type=int, default=2_000, help="appends of each idempotency round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help=f"rounds, in turns; of idempotency {TURNS} times so many")


async def run(options: argparse.Namespace) -> Report:
    """Measure.

    Raises:
        Missing: no Redis.
    """
    started = time.monotonic()
    first, others = cores()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(open_redis(on=others))
        log = await stack.enter_async_context(open_log(server.url))
        client = Tailrace.on(DirectLog.on(log, Kinds()))
        stack.push_async_callback(client.aclose)
        stack.enter_context(pinned(first))
        appends = Appends(options, server, client)
        contenders: dict[str, Contender] = {f"{n} a call": appends.batches(n) for n in BATCHES}
        contenders |= {f"{size} KB": appends.sized(size) for size in SIZES}
        say(f"append: {options.events} events in calls of {', '.join(map(str, BATCHES))}; 1 KB and 100 KB, in turns")
        samples = await interleave(contenders, options.rounds)
        say(f"append: {options.numbered} appends with a number, without one, with a uid, in turns")
        numbered = await stack.enter_async_context(open_numbered(server, options.numbered))
        ways = {"numbered": numbered.numbered, "bare": numbered.bare, "uid": numbered.with_uid}
        costs = await interleave(ways, TURNS * options.rounds)
        report = _report(options, samples, costs, appends)
    report.setting["redis"] = await redis_version()
    report.seconds = time.monotonic() - started
    return report


class Appends:
    """The publishers: one call after the other, so that what a call takes is what is measured."""

    def __init__(self, options: argparse.Namespace, server: Server, client: Tailrace) -> None:
        self.delays: dict[str, Histogram] = {}
        self._options = options
        self._server = server
        self._client = client

    def batches(self, each: int) -> Contender:
        """Small events, so many a call."""
        events = [_event(200, n) for n in range(each)]
        return lambda: self._measured(f"{each} a call", events, max(1, self._options.events // each))

    def sized(self, kib: int) -> Contender:
        """One event of a size a call."""
        return lambda: self._measured(f"{kib} KB", [_event(kib * KIB, 0)], self._options.large)

    async def _measured(self, name: str, events: list[Event], calls: int) -> Sample:
        delays = self.delays.setdefault(name, Histogram())
        mine = Histogram()
        counted, cpu, began = await redis_time(self._server.url), cpu_seconds(self._server.pid), time.perf_counter()
        for n in range(calls):
            asked = time.perf_counter()
            await self._client.publish_many(f"run:append-{n % STREAMS}", events)
            mine.add(time.perf_counter() - asked)
        elapsed, used = time.perf_counter() - began, cpu_seconds(self._server.pid) - cpu
        delays.merge(mine)
        script, before = (await redis_time(self._server.url))["evalsha"], counted.get("evalsha", (0, 0))
        count = calls * len(events)
        return {
            "per_second": count / elapsed,
            "p50_ms": mine.percentile(50),
            "p99_ms": mine.percentile(99),
            "redis_us": used / count * 1e6,
            "script_us": (script[1] - before[1]) / count,
        }


def _event(size: int, n: int) -> Event:
    return Event("bench.tick", {"n": n, "text": "x" * (size - 40)})


def _report(
    options: argparse.Namespace, samples: dict[str, list[Sample]], costs: dict[str, list[Sample]], appends: Appends
) -> Report:
    measures: list[Measure] = []
    for name, rounds in samples.items():
        delays = appends.delays[name]
        measures += [
            Measure(f"{name}: events", median(rounds, "per_second"), "/s", note="one caller"),
            Measure(f"{name}: a call, p50", delays.percentile(50), "ms"),
            Measure(f"{name}: a call, p99", delays.percentile(99), "ms"),
            Measure(f"{name}: Redis in the script, an event", median(rounds, "script_us"), "µs"),
            Measure(f"{name}: Redis CPU, an event", median(rounds, "redis_us"), "µs"),
        ]
    measures += [
        Measure("idempotency: an append as it is", median(costs["numbered"], "us"), "µs", note="Redis CPU, pipelined"),
        Measure("idempotency: without the producer's number", median(costs["bare"], "us"), "µs"),
        Measure("idempotency: the number's cost", _cost(costs, "numbered", "bare", "us"), "%", at_most=10),
        Measure("idempotency: the number's cost, in the script", _cost(costs, "numbered", "bare", "script_us"), "%"),
        Measure("idempotency: a caller's uid costs, on top", _cost(costs, "uid", "numbered", "us"), "%"),
        Measure("idempotency: a caller's uid, in the script", _cost(costs, "uid", "numbered", "script_us"), "%"),
    ]
    setting = {
        "events a round": options.events,
        "bytes": 200,
        "streams": STREAMS,
        "large ones": options.large,
        "appends of an idempotency round": options.numbered,
        "rounds": options.rounds,
    }
    report = Report("append", "Append: batches, sizes, and what idempotency costs Redis", setting, measures)
    report.rounds = {**samples, **{f"idempotency, {name}": rounds for name, rounds in costs.items()}}
    report.histograms = {f"{name}": delays for name, delays in appends.delays.items()}
    return report


def _cost(samples: dict[str, list[Sample]], name: str, other: str, key: str) -> float:
    """What `name` takes more than `other`, in per cent."""
    return (ratio(samples, name, other, key) - 1) * 100
