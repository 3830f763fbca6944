"""`fanout`: one stream to many clients through Redis, against a bare C loop of writes and Nchan.

The gateway has a core of its own; Redis, the publisher and the audience share the others. What is compared is
user and system CPU per delivery: of the gateway's process, of the C loop, and of Nchan where nginx has it. All three
write the same bytes to the same number of sockets, one record per write, at the same pace. The rows `fanout`,
`fanout-2000`, `fanout-ws` and `fanout-ws-2000` are this with other clients.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeAlias

from bench.harness import Contender, Histogram, Measure, Report, Sample, interleave, median, ratio, say
from bench.nchan import module, open_nchan
from bench.process import Child, Cores, build, child, cores, cpu_seconds, private_folder, write_calls
from bench.server import redis_version
from bench.stack import Audience, Heard, Stack, audience, open_log, open_stack, request, sse_path, ws_path
from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.eventlog.base import Log

__all__ = ["add_arguments", "run"]

STREAM = StreamName.parse("run:fanout")
FILLER = "x" * 150
BATCH = 1_000
BUSY = (
    "four fifths of a delivery are the kernel's (PROFILES.md); where `records a write` is above 1 the machine was busy,"
    " and each write was a larger one out of cold caches"
)
Publish: TypeAlias = Callable[[int], Awaitable[None]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fanout`."""
    parser.add_argument("--websocket", action="store_true", help="over WebSocket; without it SSE")
    parser.add_argument("--clients", type=int, default=1_000, help="clients (%(default)s)")
    parser.add_argument("--records", type=int, default=200, help="records of one round (%(default)s)")
    parser.add_argument("--rate", type=int, default=50, help="records a second (%(default)s)")
    parser.add_argument("--burst", type=int, default=10_000, help="records of a burst (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, in turns (%(default)s)")
    parser.add_argument("--no-nchan", action="store_true", help="leave Nchan out even if nginx has it")


async def run(options: argparse.Namespace) -> Report:
    """Measure.

    Raises:
        Missing: no C compiler or no Redis.
    """
    started = time.monotonic()
    first, others = cores()
    async with AsyncExitStack() as stack:
        rig = await stack.enter_async_context(_open_rig(options, first, others))
        paced: dict[str, Contender] = {"gateway": rig.gateway_paced, "C loop": rig.loop_paced}
        burst: dict[str, Contender] = {"gateway": rig.gateway_burst, "C loop": rig.loop_burst}
        if not options.no_nchan and module() is not None:
            listening = open_nchan(options.clients, first, others, websocket=options.websocket)
            nchan = await stack.enter_async_context(listening)
            paced["Nchan"] = lambda: nchan.paced(options.records, options.rate)
            burst["Nchan"] = lambda: nchan.burst(rig.fewer)
        name = f"{options.clients} {_transport(options)} clients"
        say(f"{options.command}: {name}, {options.rate} records/s, {', '.join(paced)} in turns")
        await rig.rest()
        slowly = await interleave(paced, options.rounds)
        say(f"{options.command}: bursts of {options.burst} records")
        at_once = await interleave(burst, max(1, options.rounds // 2))
        report = _report(options, slowly, at_once, rig)
    report.setting["redis"] = await redis_version()
    report.seconds = time.monotonic() - started
    return report


class Rig:
    """Everything that runs during the measurement."""

    def __init__(
        self,
        options: argparse.Namespace,
        stack: Stack,
        log: Log,
        delivery_bytes: int,
        heard_by: Audience,
        loop: Loop,
        listeners: Audience,
    ) -> None:
        self.options = options
        self.stack = stack
        self.delivery_bytes = delivery_bytes
        self.delays = Histogram()
        self.lost = 0
        self.idle = 0.0
        """Share of a core that the gateway takes when nothing is published."""
        self._audience_cpu = 0.0
        self._log = log
        self._audience = heard_by
        self._loop = loop
        self._loop_audience = listeners

    @property
    def fewer(self) -> int:
        """Records of a burst for who joins none: a tenth, that is enough for a number."""
        burst: int = self.options.burst
        return max(1, burst // 10)

    async def rest(self, seconds: float = 2.0) -> None:
        """Measure the gateway while nothing happens."""
        before = cpu_seconds(self.stack.gateway.pid)
        await asyncio.sleep(seconds)
        self.idle = (cpu_seconds(self.stack.gateway.pid) - before) / seconds

    async def gateway_paced(self) -> Sample:
        """One record at a time, at a pace."""
        records = self.options.records
        sample, heard = await self._gateway(records, records / self.options.rate, self._pace)
        self.delays.merge(heard.delays)
        return sample

    async def gateway_burst(self) -> Sample:
        """As many as the log takes."""
        return (await self._gateway(self.options.burst, 60, self._flood))[0]

    async def _gateway(self, records: int, seconds: float, publish: Publish) -> tuple[Sample, Heard]:
        pid = self.stack.gateway.pid
        self._audience.expect(records, seconds + 60)
        before, written, began = cpu_seconds(pid), write_calls(pid), time.monotonic()
        await publish(records)
        heard = await self._audience.heard(seconds + 90)
        cpu, deliveries = cpu_seconds(pid) - before, records * self.options.clients
        # An HTTP chunk is a write; over WebSocket the kernel counts them, the few to Redis included.
        writes = heard.chunks or write_calls(pid) - written or deliveries
        self.lost += deliveries - heard.events + heard.missing + heard.duplicate
        elapsed = time.monotonic() - began
        audience_cpu, self._audience_cpu = heard.cpu - self._audience_cpu, heard.cpu
        return {
            "us": cpu / deliveries * 1e6,
            "us_a_write": cpu / writes * 1e6,
            "records_a_write": heard.events / writes,
            "core": cpu / elapsed,
            "audience_core": audience_cpu / elapsed,
            "per_second": heard.events / elapsed,
        }, heard

    async def _pace(self, records: int) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        for n in range(records):
            await self._log.append(STREAM, [_event(n)])
            due += 1 / self.options.rate
            await asyncio.sleep(max(0, due - loop.time()))

    async def _flood(self, records: int) -> None:
        for first in range(0, records, BATCH):
            await self._log.append(STREAM, [_event(n) for n in range(first, min(first + BATCH, records))])

    async def loop_paced(self) -> Sample:
        """The same bytes at the same pace, from C."""
        return await self._c_loop(self.options.records, 1_000_000 // self.options.rate)

    async def loop_burst(self) -> Sample:
        """The same bytes as fast as the sockets take them."""
        return await self._c_loop(self.fewer, 0)

    async def _c_loop(self, records: int, interval: int) -> Sample:
        self._loop_audience.expect(records, 120)
        cpu = await self._loop.run(records, interval)
        heard = await self._loop_audience.heard(120)
        if heard.events != records * self.options.clients:
            raise RuntimeError(f"the C loop lost events: {heard.events}")
        return {"us": cpu / heard.events * 1e6, "us_a_write": cpu / heard.events * 1e6}


class Loop:
    """The C loop of writes."""

    def __init__(self, process: Child, port: int) -> None:
        self.port = port
        self._process = process

    async def run(self, records: int, interval_us: int) -> float:
        """Write; return the CPU seconds it took."""
        self._process.tell(f"run {records} {interval_us}")
        _, _, micros = (await self._process.line(120)).split()
        return int(micros) / 1e6


def _event(n: int) -> Event:
    """About 200 bytes of data, with the time of its making: the same clock as the audience's."""
    return Event("bench.tick", {"t": time.monotonic_ns(), "n": n, "fill": FILLER})


@asynccontextmanager
async def _open_rig(options: argparse.Namespace, first: Cores, others: Cores) -> AsyncIterator[Rig]:
    websocket = options.websocket
    path = ws_path(STREAM) if websocket else sse_path(STREAM)
    async with AsyncExitStack() as stack:
        folder = await stack.enter_async_context(private_folder())
        served = await stack.enter_async_context(open_stack(gateway_on=first, others_on=others))
        log = await stack.enter_async_context(open_log(served.redis_url))
        await log.append(STREAM, [_event(0)])
        sample = folder / "sample"
        sample.write_bytes(await _sample(served, path, log, websocket=websocket))
        process = await stack.enter_async_context(child([build("writeloop"), sample, "131072"], on=first))
        loop = Loop(process, int((await process.line(30)).split()[1]))
        listening = audience(
            served.port, options.clients, path=path, token=served.token, websocket=websocket, on=others
        )
        heard_by = await stack.enter_async_context(listening)
        listening = audience(loop.port, options.clients, path="/", chain=False, websocket=websocket, on=others)
        listeners = await stack.enter_async_context(listening)
        yield Rig(options, served, log, sample.stat().st_size, heard_by, loop, listeners)


async def _sample(stack: Stack, path: str, log: Log, *, websocket: bool) -> bytes:
    """The bytes of one delivery, as the gateway writes them: one HTTP chunk with one event, or one frame."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    writer.write(request(path, stack.token, websocket=websocket))
    async with asyncio.timeout(10):
        if websocket:
            await reader.readuntil(b"\r\n\r\n")
            await _frame(reader)  # `open`
            await log.append(STREAM, [_event(0)])
            delivery = await _frame(reader)
        else:
            await reader.readuntil(b"stream.open\n")
            await reader.readuntil(b"\n\n")
            await reader.readuntil(b"\r\n")
            await log.append(STREAM, [_event(0)])
            head = await reader.readuntil(b"\r\n")
            delivery = head + await reader.readexactly(int(head, 16) + 2)
    writer.close()
    return delivery


async def _frame(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(2)
    if head[1] < 126:
        return head + await reader.readexactly(head[1])
    head += await reader.readexactly(2)
    return head + await reader.readexactly(int.from_bytes(head[2:], "big"))


def _transport(options: argparse.Namespace) -> str:
    return "WebSocket" if options.websocket else "SSE"


def _report(
    options: argparse.Namespace, paced: dict[str, list[Sample]], burst: dict[str, list[Sample]], rig: Rig
) -> Report:
    measures = [
        Measure("gateway CPU per delivery", median(paced["gateway"], "us"), "µs"),
        Measure("C write loop, the same bytes", median(paced["C loop"], "us"), "µs"),
        Measure(
            "gateway / C loop, per write", ratio(paced, "gateway", "C loop", "us_a_write"), "x", at_most=1.6, why=BUSY
        ),
        Measure("records a write", median(paced["gateway"], "records_a_write"), note="1 unless the machine is busy"),
    ]
    if "Nchan" in paced:
        measures += [
            Measure("Nchan CPU per delivery", median(paced["Nchan"], "us"), "µs"),
            Measure(
                "gateway / Nchan, per write", ratio(paced, "gateway", "Nchan", "us_a_write"), "x", at_most=1.0, why=BUSY
            ),
        ]
    measures += [
        Measure("gateway at rest", rig.idle * 100, "% of a core", note=f"{options.clients} clients connected"),
        Measure("the audience's own CPU", median(paced["gateway"], "audience_core") * 100, "% of a core"),
        Measure("burst: gateway CPU per record and client", median(burst["gateway"], "us"), "µs"),
        Measure("burst: gateway / C loop, per record", ratio(burst, "gateway", "C loop", "us"), "x", at_most=1.0),
        *(
            [Measure("burst: gateway / Nchan, per record", ratio(burst, "gateway", "Nchan", "us"), "x", at_most=1.0)]
            if "Nchan" in burst
            else []
        ),
        Measure("burst: deliveries", median(burst["gateway"], "per_second"), "/s"),
        Measure("publish to client, p50", rig.delays.percentile(50), "ms", note=f"at {options.rate} records/s"),
        Measure("publish to client, p99", rig.delays.percentile(99), "ms"),
        Measure("lost, repeated or late records", rig.lost, at_most=0),
    ]
    setting = {
        "clients": options.clients,
        "records/s": options.rate,
        "records a round": options.records,
        "burst": options.burst,
        "rounds": options.rounds,
        "bytes a delivery": rig.delivery_bytes,
    }
    title = f"Fan-out: one stream to {options.clients:,} {_transport(options)} clients through Redis"
    report = Report(options.command, title.replace(",", " "), setting, measures)
    report.rounds = {**paced, **{f"{name}, burst": samples for name, samples in burst.items()}}
    report.histograms = {"publish to client": rig.delays}
    if "Nchan" not in paced:
        report.notes.append("Nchan was not measured: nginx with libnginx-mod-nchan is not installed")
    return report
