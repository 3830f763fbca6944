"""`migrate`: Pub/Sub against streams for a workflow's messages: publishing, delivery, memory; a report of its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from html import escape
from pathlib import Path

from redis.asyncio import Redis

from bench import plot
from bench.harness import Contender, Histogram, Measure, Report, Sample, interleave, median, number, ratio, say
from bench.process import cores, pinned
from bench.report import VERDICT
from bench.server import Server, open_redis, redis_version
from tailrace.core.cursor import Special
from tailrace.core.event import Record
from tailrace.core.kinds import Kinds
from tailrace.core.rollout import Mode
from tailrace.eventlog.redis.log import RedisLog
from tailrace.eventlog.redis.pubsub import Channels, Listener
from tailrace.features.workflow.message import stream_of
from tailrace.features.workflow.publisher import WorkflowPublisher
from tailrace.hub.block import Block
from tailrace.hub.hub import Hub

__all__ = ["add_arguments", "predicted_bytes", "run"]

WAYS = {"Pub/Sub": Mode.PUBSUB, "streams": Mode.STREAMS, "dual": Mode.DUAL}
WORKFLOWS = (1, 100, 500)
OUTPUT = "x" * 120
MEMORY_EVENTS = 10_000
ENTRY_BYTES = 62
"""What an entry takes beside its data: id, type, time, previous id and the node's share (docs/migration.md)."""
STREAM_BYTES = 6_000
"""What a stream takes beside its entries: its key, what is known of its end, the last node's reserve."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `migrate`."""
    parser.add_argument("--rate", type=int, default=1_000, help="awaited messages a second (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, in turns (%(default)s)")
    parser.add_argument("--report", type=Path, help="folder for migrate.md and migrate.html")


def predicted_bytes(events: int, streams: int, data_bytes: int) -> int:
    """What Redis needs for so many events of this size in so many streams."""
    return events * (data_bytes + ENTRY_BYTES) + streams * STREAM_BYTES


async def run(options: argparse.Namespace) -> Report:
    """Measure.

    Raises:
        Missing: no Redis.
    """
    started = time.monotonic()
    first, others = cores()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(open_redis(on=others))
        memory = [await _memory(server, streams) for streams in (1, 100)]
        stack.enter_context(pinned(first))
        bench = _Migration(options, server)
        contenders: dict[str, Contender] = {
            _name(way, count): partial(bench.measure, way, count) for count in WORKFLOWS for way in WAYS
        }
        say(f"migrate: {options.rate}/s awaited on {', '.join(map(str, WORKFLOWS))} workflows, three ways, in turns")
        samples = await interleave(contenders, options.rounds)
    report = _report(options, samples, bench, memory)
    report.setting["redis"] = await redis_version()
    report.seconds = time.monotonic() - started
    if options.report is not None:
        await asyncio.to_thread(_keep, options.report, report)
    return report


def _name(way: str, workflows: int) -> str:
    return f"{workflows} workflow{'s' if workflows > 1 else ''}, {way}"


class _Taken:
    """A sink, and a listener's ear: how long each message was on its way."""

    def __init__(self) -> None:
        self.delays = Histogram()

    def take(self, message: bytes) -> None:
        self.delays.add(time.perf_counter() - json.loads(message)["at"])

    def write(self, block: Block) -> bool:
        for item in block.items:
            if isinstance(item, Record):
                self.take(item.data)
        return True

    async def wait_writable(self) -> None:
        """Never full."""


class _Migration:
    """Publisher and viewers in this process, Redis beside it: the ways differ in what Redis does and how it is read."""

    def __init__(self, options: argparse.Namespace, server: Server) -> None:
        self.published: dict[str, Histogram] = {}
        self.delivered: dict[str, Histogram] = {}
        self.lost = 0
        self._options = options
        self._server = server
        self._round = 0

    async def measure(self, way: str, workflows: int) -> Sample:
        self._round += 1
        name, ids = _name(way, workflows), [f"{self._round}-{n}" for n in range(workflows)]
        mine, taken, count = Histogram(), _Taken(), int(self._options.rate * self._options.seconds)
        async with AsyncExitStack() as stack:
            publisher = await stack.enter_async_context(WorkflowPublisher(self._server.url, mode=WAYS[way]))
            viewing = _on_channels if WAYS[way] is Mode.PUBSUB else _on_streams
            await stack.enter_async_context(viewing(self._server.url, ids, taken))
            await publisher.publish(ids[0], {"type": "warm up", "at": time.perf_counter()})
            await self._publish(publisher, ids, count, mine)
            await _until_all(taken, count + 1)
        self.lost += count + 1 - taken.delays.count
        self.published.setdefault(name, Histogram()).merge(mine)
        self.delivered.setdefault(name, Histogram()).merge(taken.delays)
        return {
            "publish_p50_ms": mine.percentile(50),
            "publish_p99_ms": mine.percentile(99),
            "delivery_p50_ms": taken.delays.percentile(50),
            "delivery_p99_ms": taken.delays.percentile(99),
        }

    async def _publish(self, publisher: WorkflowPublisher, ids: list[str], count: int, delays: Histogram) -> None:
        """At a fixed rate, whatever the last one takes; of one workflow one after the other."""
        turns = [asyncio.Lock() for _ in ids]

        async def one(number: int) -> None:
            async with turns[number % len(ids)]:
                begun = time.perf_counter()
                await publisher.publish_node_output(ids[number % len(ids)], "node", OUTPUT, at=begun)
                delays.add(time.perf_counter() - begun)

        loop = asyncio.get_running_loop()
        due = loop.time()
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                due += 1 / self._options.rate
                if (wait := due - loop.time()) > 0:
                    await asyncio.sleep(wait)
                group.create_task(one(number))


async def _until_all(taken: _Taken, count: int) -> None:
    for _ in range(500):
        if taken.delays.count >= count:
            return
        await asyncio.sleep(0.01)


@asynccontextmanager
async def _on_channels(url: str, ids: list[str], taken: _Taken) -> AsyncIterator[None]:
    channels = Channels(url)
    listener = Listener(
        channels, prefix="tailrace:", on_message=lambda _, message: taken.take(message), on_link=lambda _: None
    )
    task = asyncio.create_task(listener.run())
    try:
        for each in ids:
            await listener.subscribe(f"workflow:{each}")
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await channels.aclose()


@asynccontextmanager
async def _on_streams(url: str, ids: list[str], taken: _Taken) -> AsyncIterator[None]:
    log = RedisLog.connect(url)
    hub = Hub(log, Kinds())
    running = asyncio.create_task(hub.run())
    try:
        await hub.wait_running()
        subscription = await hub.open({stream_of(each): Special.NOW for each in ids}, taken, stays_open=True)
        feeding = asyncio.create_task(subscription.run())
        yield
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await log.aclose()


async def _memory(server: Server, streams: int) -> tuple[str, int, int]:
    """Name, measured and predicted bytes of 10 000 events in so many streams."""
    async with Redis.from_url(server.url) as redis, WorkflowPublisher(server.url) as publisher:
        await publisher.publish("warm", {"type": "up"})
        before = (await redis.info("memory"))["used_memory"]
        for start in range(0, MEMORY_EVENTS, 100):
            batch = range(start, start + 100)
            await asyncio.gather(
                *(publisher.publish_node_output(f"m{streams}-{n % streams}", "node", OUTPUT, at=n) for n in batch)
            )
        used = (await redis.info("memory"))["used_memory"] - before
        record = (await publisher.read_history(f"m{streams}-0", limit=1)).messages[0]
    record.pop("id", None)
    size = len(json.dumps(record, separators=(",", ":")))
    return f"{streams} stream{'s' if streams > 1 else ''}", used, predicted_bytes(MEMORY_EVENTS, streams, size)


def _report(
    options: argparse.Namespace,
    samples: dict[str, list[Sample]],
    bench: _Migration,
    memory: list[tuple[str, int, int]],
) -> Report:
    measures: list[Measure] = []
    for count in WORKFLOWS:
        for way in WAYS:
            name = _name(way, count)
            for key, words in (("publish", "published"), ("delivery", "delivered")):
                measures += [
                    Measure(f"{name}: {words}, p50", median(samples[name], f"{key}_p50_ms"), "ms"),
                    Measure(f"{name}: {words}, p99", median(samples[name], f"{key}_p99_ms"), "ms"),
                ]
        streams, pubsub = _name("streams", count), _name("Pub/Sub", count)
        for key, words in (("publish", "publishing"), ("delivery", "delivery")):
            value = ratio(samples, streams, pubsub, f"{key}_p50_ms")
            measures.append(Measure(f"{count} workflows: streams / Pub/Sub, {words} p50", value, "x", at_most=1.3))
    for name, used, predicted in memory:
        measures += [
            Measure(f"memory of {MEMORY_EVENTS} events in {name}", used / 1_048_576, "MiB"),
            Measure(f"its prediction, {name}", predicted / 1_048_576, "MiB"),
            Measure(f"measured / predicted, {name}", used / predicted, "x", at_most=1.25),
        ]
    measures.append(Measure("messages lost", bench.lost, at_most=0))
    setting = {"rate": f"{options.rate}/s", "seconds": options.seconds, "rounds": options.rounds, "bytes": len(OUTPUT)}
    report = Report("migrate", "Pub/Sub against streams, for a workflow's messages", setting, measures)
    report.rounds = samples
    report.histograms = {
        **{f"published, {name}": one for name, one in bench.published.items() if "dual" not in name},
        **{f"delivered, {name}": one for name, one in bench.delivered.items() if "dual" not in name},
    }
    report.notes = [
        "A stream's publish is stored, counted and fenced before it is acknowledged; Pub/Sub's is only sent."
    ]
    return report


def _keep(folder: Path, report: Report) -> None:
    """The report in Markdown and in HTML, with its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        word: plot.picture(word, {name: one for name, one in report.histograms.items() if name.startswith(word)})
        for word in ("published", "delivered")
    }
    rows = [
        (
            one.name,
            f"{number(one.value)} {one.unit}".strip(),
            one.target,
            VERDICT[one.met],
        )
        for one in report.measures
    ]
    lines = [f"# {report.title}", "", "| | measured | target | |", "|---|---:|---:|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    for word, drawn in pictures.items():
        (folder / f"migrate-{word}.svg").write_text(drawn)
        lines += ["", f"![{word}](migrate-{word}.svg)"]
    facts = " · ".join(f"{name} {value}" for name, value in report.setting.items())
    lines += ["", f"{facts}. {report.taken}.", *(f"* {note}" for note in report.notes), ""]
    (folder / "migrate.md").write_text("\n".join(lines))
    cells = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    head = f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{escape(report.title)}</title>\n"
    style = "<style>body{font:14px sans-serif;margin:2em}td{padding:2px 12px 2px 0}</style>\n"
    body = f"<h1>{escape(report.title)}</h1>\n<table>\n{cells}</table>\n{''.join(pictures.values())}"
    notes = "".join(f"<p>{escape(note)}</p>\n" for note in [*report.notes, f"{facts}. {report.taken}."])
    (folder / "migrate.html").write_text(f"{head}{style}{body}\n{notes}</html>\n")
