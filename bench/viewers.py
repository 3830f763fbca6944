"""Viewers of workflows in a process of their own, for `migrate`, by lines.

    watch pubsub|streams NAME COUNT     hear or read workflows NAME-0 … NAME-(COUNT-1) too; answers "ready"
    report NAME MESSAGES                wait until so many came since the last time, at most some seconds; answers JSON
    leave                               watch nothing any more; answers "left"

The publisher then has an event loop of its own, as publishers have. Both processes have one clock: CLOCK_MONOTONIC.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import uvloop

from bench.harness import Histogram
from bench.process import cpu_seconds
from tailrace.core.cursor import Special
from tailrace.core.event import Record
from tailrace.core.kinds import Kinds
from tailrace.core.rollout import Mode
from tailrace.eventlog.redis.log import RedisLog
from tailrace.eventlog.redis.pubsub import Channels, Listener
from tailrace.features.workflow.message import stream_of
from tailrace.hub.block import Block
from tailrace.hub.hub import Hub

__all__ = ["workflow_ids"]

PATIENCE_SECONDS = 10.0


class _Message(msgspec.Struct):
    at: float


_MESSAGE = msgspec.json.Decoder(_Message)


def workflow_ids(name: str, count: int) -> list[str]:
    """The workflows of one round."""
    return [f"{name}-{number}" for number in range(count)]


class _Taken:
    """A sink, and a listener's ear: how long each message was on its way."""

    def __init__(self) -> None:
        self.delays = Histogram()

    def take(self, message: bytes) -> None:
        self.delays.add(time.monotonic() - _MESSAGE.decode(message).at)

    def write(self, block: Block) -> bool:
        for item in block.items:
            if isinstance(item, Record):
                self.take(item.data)
        return True

    async def wait_writable(self) -> None:
        """Never full."""


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


class _Watching:
    """What is watched, by name."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self._url = url
        self._stack = stack
        self._taken: dict[str, _Taken] = {}

    async def answer(self, words: list[str]) -> str:
        """Do what a line says."""
        if words[0] == "watch":
            await self._watch(Mode(words[1]), words[2], int(words[3]))
            return "ready"
        return await self._report(words[1], int(words[2]))

    async def _watch(self, mode: Mode, name: str, count: int) -> None:
        taken = self._taken[name] = _Taken()
        watching = _on_channels if mode is Mode.PUBSUB else _on_streams
        await self._stack.enter_async_context(watching(self._url, workflow_ids(name, count), taken))
        gc.collect()
        gc.freeze()

    async def _report(self, name: str, messages: int) -> str:
        taken = self._taken[name]
        for _ in range(int(PATIENCE_SECONDS * 1000)):
            if taken.delays.count >= messages:
                break
            await asyncio.sleep(0.001)
        delays, taken.delays = taken.delays, Histogram()
        return json.dumps({"buckets": delays.buckets, "cpu": cpu_seconds(os.getpid())})


async def _words() -> list[str]:
    line: str = await asyncio.to_thread(sys.stdin.readline)
    return line.split()


async def _main(url: str) -> None:
    words = await _words()
    while words:
        async with AsyncExitStack() as stack:
            watching = _Watching(url, stack)
            while words and words[0] != "leave":
                print(await watching.answer(words), flush=True)
                words = await _words()
        gc.unfreeze()
        print("left", flush=True)
        words = words and await _words()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(sys.argv[1]))
