"""`profile`: where the gateway's time goes while it is given something to do. Needs py-spy (PyPI); perf is a bonus.

`python -m bench profile fanout`. Nothing is asserted; nothing is kept but what `--raw` names, stacks for a flame graph.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

from bench.harness import number, say
from bench.load import open_load
from bench.process import Missing, cpu_seconds, private_folder
from bench.publish import HTTP_PUBLISHERS, Connections
from bench.resume import first_event
from bench.stack import Stack, audience, open_log, open_stack, sse_path, ws_path
from tailrace.core.event import Event
from tailrace.core.names import StreamName

__all__ = ["WORK", "add_arguments", "profile"]

STREAM = StreamName.parse("run:profile")
DATA = {"n": 0, "fill": "x" * 150}
BODY = b'{"type":"bench.tick","data":{"n":0,"fill":"%b"}}' % (b"x" * 150)
RATE = 50
RECORDS = 20_000
PERF_EVENTS = "task-clock,context-switches,cpu-migrations,page-faults"
Watch = Callable[[], Awaitable[None]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `profile`."""
    parser.add_argument("work", choices=sorted(WORK), help="what the gateway is given to do")
    parser.add_argument("--clients", type=int, default=1_000, help="clients, where there are some (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long it is watched (%(default)s)")
    parser.add_argument("--lines", type=int, default=25, help="of each table (%(default)s)")
    parser.add_argument("--raw", type=Path, help="keep the stacks here")


async def profile(options: argparse.Namespace) -> None:
    """Print where the time went.

    Raises:
        Missing: no py-spy, no C compiler or no Redis.
    """
    spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if spy is None:
        raise Missing("no py-spy: pip install py-spy, and let it trace (root, or ptrace_scope 0)")
    async with open_stack() as served, private_folder() as folder:
        stacks = options.raw or folder / "stacks"

        async def watch() -> None:
            pid, quiet, before = served.gateway.pid, asyncio.subprocess.DEVNULL, cpu_seconds(served.gateway.pid)
            argv = [spy, "record", "-d", f"{options.seconds:.0f}", "-r", "200", "-f", "raw", "-o", str(stacks)]
            watching = [asyncio.create_subprocess_exec(*argv, "-p", str(pid), stdout=quiet, stderr=quiet)]
            if perf := shutil.which("perf"):
                counted = ["stat", "-e", PERF_EVENTS, "-p", str(pid), "--", "sleep", f"{options.seconds:g}"]
                watching.append(asyncio.create_subprocess_exec(perf, *counted))
            processes = [await one for one in watching]
            codes = [await process.wait() for process in processes]
            if codes[0]:
                raise RuntimeError("py-spy could not watch the gateway")
            busy = (cpu_seconds(pid) - before) / options.seconds
            print(f"gateway: {number(busy * 100)} % of a core, load {os.getloadavg()[0]:.1f}")

        await WORK[options.work](options, served, watch)
        for line in tables(stacks.read_text(), options.lines):
            print(line)


def tables(stacks: str, lines: int) -> list[str]:
    """The functions in which most samples ended, and those through which most went."""
    own: Counter[str] = Counter()
    through: Counter[str] = Counter()
    for line in stacks.splitlines():
        names, _, count = line.rpartition(" ")
        frames = names.split(";")
        own[frames[-1]] += int(count)
        for name in set(frames):
            through[name] += int(count)
    total = max(1, sum(own.values()))
    said: list[str] = []
    for title, counted in (("itself", own), ("and what it calls", through)):
        said += ["", f"  % {title}"]
        most = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:lines]
        said += [f"{count / total * 100:5.1f} {name}" for name, count in most]
    return said


async def _fanout(options: argparse.Namespace, served: Stack, watch: Watch, *, websocket: bool = False) -> None:
    path = (ws_path if websocket else sse_path)(STREAM)
    async with open_log(served.redis_url) as log:
        await log.append(STREAM, [Event("bench.tick", DATA)])
        async with audience(served.port, options.clients, path=path, token=served.token, websocket=websocket) as heard:
            heard.expect(10**9, options.seconds + 2)

            async def publish() -> None:
                await log.append(STREAM, [Event("bench.tick", DATA)])

            await _meanwhile(watch, publish, pause=1 / RATE)


async def _fanout_ws(options: argparse.Namespace, served: Stack, watch: Watch) -> None:
    await _fanout(options, served, watch, websocket=True)


async def _publish(options: argparse.Namespace, served: Stack, watch: Watch) -> None:
    del options
    with closing(Connections(served.port, served.token)) as http:

        async def publish() -> None:
            await http.post(STREAM, BODY, "application/json")

        began, count = time.monotonic(), await _meanwhile(watch, publish, at_once=HTTP_PUBLISHERS)
        say(f"{count / (time.monotonic() - began):,.0f} requests/s over {HTTP_PUBLISHERS} connections")


async def _load(options: argparse.Namespace, served: Stack, watch: Watch) -> None:
    async with open_load(served, options.clients) as load:
        running = asyncio.create_task(load.run(10_000, options.seconds + 1))
        await watch()
        await running


async def _resume(options: argparse.Namespace, served: Stack, watch: Watch) -> None:
    del options
    async with open_log(served.redis_url) as log:
        ids = [one.id for _ in range(RECORDS // 1_000) for one in await log.append(STREAM, [_tick()] * 1_000)]
        places = ids[-9_000:-1_000]  # what the kind keeps

        async def come_back() -> None:
            await first_event(served, STREAM, str(random.choice(places)))

        count = await _meanwhile(watch, come_back)
        say(f"{count} came back, one after the other")


def _tick() -> Event:
    return Event("bench.tick", DATA)


async def _meanwhile(
    watch: Watch, work: Callable[[], Awaitable[object]], *, at_once: int = 1, pause: float = 0.0
) -> int:
    """Do something again and again while the gateway is watched; return how often."""
    count = 0

    async def again() -> None:
        nonlocal count
        while True:
            await work()
            count += 1
            if pause:
                await asyncio.sleep(pause)

    tasks = [asyncio.create_task(again()) for _ in range(at_once)]
    try:
        await watch()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return count


WORK: dict[str, Callable[[argparse.Namespace, Stack, Watch], Awaitable[None]]] = {
    "fanout": _fanout,
    "fanout-ws": _fanout_ws,
    "publish": _publish,
    "load": _load,
    "resume": _resume,
}
