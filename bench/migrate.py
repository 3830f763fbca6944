"""`migrate`: Pub/Sub against streams for a workflow's messages: publishing, delivery, memory; a report of its own."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import time
from contextlib import AsyncExitStack
from html import escape
from pathlib import Path

from redis.asyncio import Redis

from bench import plot
from bench.harness import Histogram, Measure, Report, Sample, median, number, ratio, say
from bench.patience import patient
from bench.process import Child, child, cores, cpu_seconds, pinned
from bench.report import VERDICT
from bench.server import Server, open_redis, redis_version
from bench.viewers import workflow_ids
from tailrace.core.rollout import Mode
from tailrace.features.workflow.publisher import WorkflowPublisher

__all__ = ["add_arguments", "predicted_bytes", "run"]

WAYS = {"Pub/Sub": Mode.PUBSUB, "streams": Mode.STREAMS, "dual": Mode.DUAL}
WORKFLOWS = (1, 100, 500)
OUTPUT = "x" * 120
SLICE_SECONDS = 0.2
TIMER_SECONDS = 0.001
"""As precise as the loop's timers are."""
WHY = (
    "an append is a script that numbers, stores, trims and announces: some tens of microseconds in Redis and some tens"
    " in the publisher, beside a PUBLISH, whose whole way is two wake-ups of processes"
)
MEMORY_EVENTS = 10_000
ENTRY_BYTES = 62
"""What an entry takes beside its data: id, type, time, previous id and the node's share (docs/migration.md)."""
STREAM_BYTES = 6_000
"""What a stream takes beside its entries: its key, what is known of its end, the last node's reserve."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `migrate`."""
    parser.add_argument("--rate", type=int, default=1_000, help="awaited messages a second (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each way, in short turns (%(default)s)")
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
        argv = [sys.executable, "-m", "bench.viewers", server.url]
        viewers = await stack.enter_async_context(child(argv, on=others))
        stack.enter_context(pinned(first))
        bench = _Migration(options, server, viewers)
        say(f"migrate: {options.rate}/s awaited on {', '.join(map(str, WORKFLOWS))} workflows, three ways, in turns")
        samples: dict[str, list[Sample]] = {}
        for count in WORKFLOWS:
            samples |= await bench.compare(count)
            for way in WAYS:
                taken = samples[_name(way, count)]
                shown = ", ".join(f"{key} {number(median(taken, key))}" for key in taken[0])
                say(f"  {_name(way, count)}: {shown}")
    report = _report(options, samples, bench, memory)
    report.setting["redis"] = await redis_version()
    report.seconds = time.monotonic() - started
    if options.report is not None:
        await asyncio.to_thread(_keep, options.report, report)
    return report


def _name(way: str, workflows: int) -> str:
    return f"{workflows} workflow{'s' if workflows > 1 else ''}, {way}"


class _Migration:
    """The publishers are this process, which has nothing else to do; viewers are another one, Redis a third. The ways
    differ in what is asked of Redis and in how it is read, and in nothing else. All are ready all the time; they take
    turns of a fraction of a second, so that what else the machine does hits all of them alike."""

    def __init__(self, options: argparse.Namespace, server: Server, viewers: Child) -> None:
        self.published: dict[str, Histogram] = {}
        self.delivered: dict[str, Histogram] = {}
        self.late = Histogram()
        """How late messages were begun: what this machine, or this event loop, had no time for."""
        self.lost = 0
        self._options = options
        self._server = server
        self._viewers = viewers
        self._cpu = 0.0

    async def compare(self, workflows: int) -> dict[str, list[Sample]]:
        """What each way did in each of its turns."""
        slices = max(1, round(self._options.seconds / SLICE_SECONDS))
        samples: dict[str, list[Sample]] = {_name(way, workflows): [] for way in WAYS}
        async with AsyncExitStack() as stack:
            publishers = {}
            for way, mode in WAYS.items():
                publishers[way] = WorkflowPublisher(self._server.url, mode=mode)
                await stack.enter_async_context(publishers[way])
                await self._ask(
                    "watch", "pubsub" if mode is Mode.PUBSUB else "streams", _prefix(way, workflows), workflows
                )
                for each in workflow_ids(_prefix(way, workflows), workflows):
                    # Its connections, the server's script cache, each stream's first node.
                    await patient(publishers[way].publish, each, {"type": "warm up", "at": time.monotonic()})
                await self._report(way, workflows, workflows)
            gc.collect()
            gc.freeze()
            for turn in range(slices):
                for way in list(WAYS)[:: 1 if turn % 2 == 0 else -1]:
                    samples[_name(way, workflows)].append(await self._slice(way, workflows, turn, publishers[way]))
            gc.unfreeze()
        await self._ask("leave")
        return samples

    async def _slice(self, way: str, workflows: int, turn: int, publisher: WorkflowPublisher) -> Sample:
        mine, key = Histogram(), _name(way, workflows)
        began, cpu, theirs = time.monotonic(), cpu_seconds(os.getpid()), self._cpu
        count = await self._publish(publisher, workflow_ids(_prefix(way, workflows), workflows), turn, mine)
        seconds, cpu = time.monotonic() - began, cpu_seconds(os.getpid()) - cpu
        delivered = await self._report(way, workflows, count)
        self.published.setdefault(key, Histogram()).merge(mine)
        self.delivered.setdefault(key, Histogram()).merge(delivered)
        return {
            "publish_p50_ms": mine.percentile(50),
            "delivery_p50_ms": delivered.percentile(50),
            "publisher_core": cpu / seconds * 100,
            "viewers_core": (self._cpu - theirs) / seconds * 100,
        }

    async def _publish(self, publisher: WorkflowPublisher, ids: list[str], turn: int, delays: Histogram) -> int:
        """One message after the other at the rate, each awaited; of one workflow one at a time.

        What this loop was late with leaves at twice the rate at most: a burst would measure how long its last message
        waited for the others.
        """
        rate: int = self._options.rate
        count = max(1, round(rate * SLICE_SECONDS))
        loop = asyncio.get_running_loop()
        order = {each: asyncio.Lock() for each in ids}

        async def one(workflow: str) -> None:
            async with order[workflow]:
                begun = time.monotonic()
                await patient(publisher.publish_node_output, workflow, "node", OUTPUT, at=begun)
                delays.add(time.monotonic() - begun)

        start, sent, most = loop.time(), 0, max(1, round(2 * rate * TIMER_SECONDS))
        async with asyncio.TaskGroup() as group:
            while sent < count:
                await asyncio.sleep(TIMER_SECONDS)
                for _ in range(most):
                    late = loop.time() - start - sent / rate
                    if sent < count and late >= 0:
                        self.late.add(late)
                        group.create_task(one(ids[(turn * count + sent) % len(ids)]))
                        sent += 1
        return count

    async def _report(self, way: str, workflows: int, count: int) -> Histogram:
        report = json.loads(await self._ask("report", _prefix(way, workflows), count))
        self._cpu = report["cpu"]
        delivered = Histogram(report["buckets"])
        self.lost += count - delivered.count
        return delivered

    async def _ask(self, *words: object) -> str:
        self._viewers.tell(" ".join(map(str, words)))
        answer: str = await self._viewers.line(60)
        return answer


def _prefix(way: str, workflows: int) -> str:
    return f"{WAYS[way]}-{workflows}"


async def _memory(server: Server, streams: int) -> tuple[str, int, int]:
    """Name, measured and predicted bytes of 10 000 events in so many streams."""
    async with Redis.from_url(server.url) as redis, WorkflowPublisher(server.url) as publisher:
        await patient(publisher.publish, "warm", {"type": "up"})
        before = (await redis.info("memory"))["used_memory"]
        for start in range(0, MEMORY_EVENTS, 100):
            batch = range(start, start + 100)
            await asyncio.gather(
                *(
                    patient(publisher.publish_node_output, f"m{streams}-{n % streams}", "node", OUTPUT, at=n)
                    for n in batch
                )
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
            for words, found in (("published", bench.published[name]), ("delivered", bench.delivered[name])):
                measures += [
                    Measure(f"{name}: {words}, p50", found.percentile(50), "ms"),
                    Measure(f"{name}: {words}, p99", found.percentile(99), "ms"),
                ]
        streams, pubsub = _name("streams", count), _name("Pub/Sub", count)
        for key, words in (("publish", "publishing"), ("delivery", "delivery")):
            value = ratio(samples, streams, pubsub, f"{key}_p50_ms")
            title = f"{count} workflows: streams / Pub/Sub, {words} p50"
            measures.append(Measure(title, value, "x", at_most=1.3, why=WHY))
    for name, used, predicted in memory:
        measures += [
            Measure(f"memory of {MEMORY_EVENTS} events in {name}", used / 1_048_576, "MiB"),
            Measure(f"its prediction, {name}", predicted / 1_048_576, "MiB"),
            Measure(f"measured / predicted, {name}", used / predicted, "x", at_most=1.25),
        ]
    measures.append(Measure("messages lost", bench.lost, at_most=0))
    setting = {
        "rate": f"{options.rate}/s",
        "seconds": options.seconds,
        "a turn": f"{SLICE_SECONDS} s",
        "bytes": len(OUTPUT),
    }
    report = Report("migrate", "Pub/Sub against streams, for a workflow's messages", setting, measures)
    report.rounds = samples
    report.histograms = {
        **{f"published, {name}": one for name, one in bench.published.items() if "dual" not in name},
        **{f"delivered, {name}": one for name, one in bench.delivered.items() if "dual" not in name},
    }
    report.notes = [
        "A stream's publish is stored, counted and fenced before it is acknowledged; Pub/Sub's is only sent.",
        f"Messages were begun {number(bench.late.percentile(50))} ms late, p99 {number(bench.late.percentile(99))} ms.",
        "Timers have a millisecond; much more says that the machine was busy.",
    ]
    for name, taken in samples.items():
        mine, theirs = (number(median(taken, f"{who}_core")) for who in ("publisher", "viewers"))
        report.notes.append(f"{name}: {mine} % of a core for publishing, {theirs} % for viewing.")
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
