"""`memory`: what an idle connection and an idle stream take, and how long starting takes.

Growth of the gateway's resident memory, divided by what was added. Kernel buffers of sockets are not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import socket
import sys
import time
from contextlib import closing

from bench.generator import stream_of
from bench.harness import Contender, Measure, Report, Sample, interleave, median, say
from bench.patience import patient
from bench.process import child, rss_bytes
from bench.server import redis_version
from bench.stack import Stack, audience, open_log, open_stack, sse_path, ws_path
from tailrace.core.event import Event

__all__ = ["add_arguments", "run"]

KIB = 1024
WARM_CLIENTS = 50
SETTLE_SECONDS = 2.0
SPARE_DESCRIPTORS = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `memory`."""
    parser.add_argument("--clients", type=int, default=2_000, help="idle connections (%(default)s)")
    parser.add_argument("--many", type=int, default=10_000, help="and once so many SSE ones; 0: not (%(default)s)")
    parser.add_argument("--starts", type=int, default=5, help="starts that are timed (%(default)s)")


async def run(options: argparse.Namespace) -> Report:
    """Measure.

    Raises:
        Missing: no C compiler or no Redis.
    """
    started = time.monotonic()
    clients = options.clients
    report = Report("memory", "Memory and starting", {"clients": clients, "starts": options.starts})
    say(f"memory: {clients} idle connections, over SSE and WebSocket, on one stream and on a stream each")
    sse = await _grown(clients, 1)
    websocket = await _grown(clients, 1, websocket=True)
    streams = await _grown(clients, clients)
    report.measures += [
        Measure("idle SSE connection", sse / KIB, "KiB", at_most=40, note=f"of {clients} on one stream"),
        Measure("idle WebSocket connection", websocket / KIB, "KiB", at_most=40, note=f"of {clients} on one stream"),
        Measure("SSE connection and its own idle stream", streams / KIB, "KiB"),
        Measure("idle stream", (streams - sse) / KIB, "KiB", note="the difference"),
    ]
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    if options.many and descriptors < options.many + SPARE_DESCRIPTORS:
        report.notes.append(f"{options.many} connections were not tried: a process may open {descriptors} files")
    elif options.many:
        say(f"memory: {options.many} idle connections")
        note = f"of {options.many} on one stream"
        many = await _grown(options.many, 1)
        report.measures.append(Measure("idle SSE connection", many / KIB, "KiB", at_most=40, note=note))
    say(f"memory: {options.starts} starts")
    async with open_stack() as served:
        contenders: dict[str, Contender] = {
            "serve": lambda: _serve(served),
            "import": lambda: _python("import tailrace"),
            "python": lambda: _python(""),
        }
        starts = await interleave(contenders, options.starts)
    report.rounds = starts
    bare = median(starts["python"], "ms")
    report.measures += [
        Measure("tailrace serve, until it answers", median(starts["serve"], "ms"), "ms", at_most=1_000),
        Measure("import tailrace", median(starts["import"], "ms") - bare, "ms", at_most=150),
        Measure("python itself", bare, "ms"),
    ]
    report.notes.append(f"load average at the end {os.getloadavg()[0]:.2f}")
    report.setting["redis"] = await redis_version()
    report.seconds = time.monotonic() - started
    return report


async def _grown(clients: int, streams: int, *, websocket: bool = False) -> float:
    """Bytes that each of so many idle connections adds to a gateway of their own."""
    path_of = ws_path if websocket else sse_path
    paths = [path_of(stream_of(n)) for n in range(streams)]
    async with open_stack() as served, open_log(served.redis_url) as log:
        pid, port, token = served.gateway.pid, served.port, served.token
        await asyncio.gather(*(patient(log.append, stream_of(n), [Event("bench.tick")]) for n in range(streams)))
        async with audience(port, min(WARM_CLIENTS, clients), path=paths, token=token, websocket=websocket):
            pass  # what the first connections load is not a connection's
        await asyncio.sleep(SETTLE_SECONDS)
        before = rss_bytes(pid)
        async with audience(port, clients, path=paths, token=token, websocket=websocket):
            await asyncio.sleep(SETTLE_SECONDS)
            return (rss_bytes(pid) - before) / clients


async def _serve(served: Stack) -> Sample:
    """From the start of `tailrace serve` to its first answer."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    began = time.perf_counter()
    async with child([sys.executable, "-m", "tailrace", "serve"], env={**served.env, "TAILRACE_PORT": str(port)}):
        async with asyncio.timeout(20):
            while not await _answers(port):
                await asyncio.sleep(0.002)
        return {"ms": (time.perf_counter() - began) * 1_000}


async def _answers(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: bench\r\n\r\n")
    answer = await reader.readline()
    writer.close()
    return answer.startswith(b"HTTP/1.1 200")


async def _python(code: str) -> Sample:
    """A Python that runs one line."""
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    if await process.wait():
        raise RuntimeError(f"{code} failed")
    return {"ms": (time.perf_counter() - began) * 1_000}
