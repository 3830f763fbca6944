"""A rollout under traffic: a publisher that writes both ways and can be made to fail, and a gateway's guards."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from tailrace.core.event import Event
from tailrace.core.kinds import Kinds
from tailrace.core.names import StreamName
from tailrace.core.rollout import GuardLimits, Mode
from tailrace.errors import LogError
from tailrace.eventlog.redis.log import RedisLog
from tailrace.eventlog.redis.pubsub import Channels
from tailrace.eventlog.redis.rollout import RedisRollout
from tailrace.features.rollout.changing import set_percent
from tailrace.features.rollout.feature import old_channel
from tailrace.features.rollout.guard import Guard
from tailrace.features.rollout.meters import Meters
from tailrace.features.rollout.view import RolloutView
from tailrace.hub.hub import Hub
from tests.support.redis_servers import RedisServer
from tests.support.wait import eventually

__all__ = ["Stage", "stage"]

SETTLE_SECONDS = 1.0
"""Longer than this process may be held up on a busy machine."""
STREAMS = 10


class Traffic:
    """Publishes about 200 events a second, each the way the view says, with faults at will."""

    def __init__(self, server: RedisServer, view: RolloutView) -> None:
        self.lose_every = 0
        """Each so many-th event never reaches its stream."""
        self.fail_every = 0
        """Each so many-th append fails, and the publisher knows."""
        self.delay_seconds = 0.0
        """Every append comes this late."""
        self.begin_every = 0
        """Each so many-th event is the only one of a workflow that nobody heard of before."""
        self.sent = 0
        self._view = view
        self._log = RedisLog.connect(server.url)
        self._channels = Channels(self._log.topology)

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for number in itertools.count():
                    await self._publish(number, group)
                    await asyncio.sleep(0.005)
        finally:
            await self._channels.aclose()
            await self._log.aclose()

    async def _publish(self, number: int, group: asyncio.TaskGroup) -> None:
        begins = self.begin_every and number % self.begin_every == 1
        name = f"new{number}" if begins else str(number % STREAMS)
        stream = StreamName.parse(f"workflow:{name}")
        # Every tenth has a twin: the same text in the same stream.
        message = {"type": "node_output", "n": number - number % 100 if number % 10 == 0 else number}
        mode = self._view.mode_of(stream)
        self.sent += 1
        if mode is not Mode.STREAMS:
            try:
                await self._channels.publish(str(stream), json.dumps(message).encode(), seconds=5)
            except LogError:
                return
        if mode is Mode.PUBSUB:
            return
        if self.fail_every and number % self.fail_every == 0:
            self._view.count(stream, published=1, errors=1)
            return
        self._view.count(stream, published=1)
        if not (self.lose_every and number % self.lose_every == 0):
            group.create_task(self._append(stream, message, self.delay_seconds))

    async def _append(self, stream: StreamName, message: dict[str, object], delay: float) -> None:
        await asyncio.sleep(delay)
        try:
            await self._log.append(stream, [Event("node_output", message)])
        except LogError:
            self._view.count(stream, errors=1)


class Stage:
    """Everything of one process that guards, and a publisher."""

    def __init__(self, server: RedisServer, limits: GuardLimits | None = None) -> None:
        self.server = server
        self.store = RedisRollout(server.url)
        self.view = RolloutView(self.store, look_seconds=0.2)
        self.log = RedisLog.connect(server.url)
        self.hub = Hub(self.log, Kinds())
        self.registry = CollectorRegistry()
        meters = Meters(self.registry)
        self.guard = Guard(self.view, self.log, self.hub, template_of=old_channel, meters=meters, limits=limits)
        self.traffic = Traffic(server, self.view)

    async def turn_on(self, percent: int = 100, *, hold_seconds: float | None = None) -> None:
        """Move, and wait until the guards have seen enough and found it good."""
        await set_percent(
            self.store, "workflow", percent, by="ann", hold_seconds=hold_seconds, settle_seconds=SETTLE_SECONDS
        )

        async def green() -> bool:
            back = [change.reason for change in await self.store.changes() if change.action == "rollback"]
            if back:
                raise RuntimeError(f"rolled back without a reason: {back}")
            return self.health == "green"

        await eventually(green, 60)

    @property
    def health(self) -> str | None:
        """What the guards said last."""
        verdict = self.guard.verdicts.get("workflow")
        return verdict.health.value if verdict is not None else None

    def metric(self, name: str, **labels: str) -> float:
        """A metric of the guards' registry."""
        return self.registry.get_sample_value(name, labels) or 0.0

    async def wait_rolled_back(self) -> str:
        """Wait for the guards' roll-back, as long as it may take, and return its reason."""
        begun = time.monotonic()
        await eventually(lambda: self.view.rollout_of("workflow").percent == 0, 60)
        print(f"rolled back after {time.monotonic() - begun:.1f} s")
        change = (await self.store.changes())[-1]
        assert change.action == "rollback"
        assert change.by.startswith("guards@")
        return change.reason


@asynccontextmanager
async def stage(
    server: RedisServer, *, traffic: bool = True, limits: GuardLimits | None = None
) -> AsyncIterator[Stage]:
    """Run it."""
    made = Stage(server, limits)
    works = [made.hub.run(), made.view.run(), made.guard.run()]
    if traffic:
        works.append(made.traffic.run())
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield made
        for task in tasks:
            assert not task.done(), task.exception()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await made.log.aclose()
        await made.store.aclose()
