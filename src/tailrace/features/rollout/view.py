"""What one process knows of the rollouts: asked every second, and the last known while Redis is away.

view = RolloutView(RedisRollout(url))
async with view.running():
    view.mode_of(stream)        # where a publisher writes
    view.reads_stream(stream)   # what a viewer is served from
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tailrace.core.names import StreamName
from tailrace.core.rollout import Mode, Rollout, of_kind, reading, rolled_back, writing
from tailrace.errors import LogUnavailable
from tailrace.eventlog.redis.rollout import RedisRollout
from tailrace.eventlog.rollout import Look, PublishReport

__all__ = ["LOOK_SECONDS", "RolloutView"]

log = logging.getLogger("tailrace.rollout")

LOOK_SECONDS = 1.0


class RolloutView:
    """See above. Until the first answer of Redis all streams are on Pub/Sub.

    Args:
        store: where the state is; the caller closes it.
        enabled: REDIS_STREAM_ENABLED.
        look_seconds: how often to ask.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        store: RedisRollout,
        *,
        enabled: bool = True,
        look_seconds: float = LOOK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.enabled = enabled
        self.has_streams = False
        self.version = 0
        """Number of the last change this process knows."""
        self.up = False
        """Whether the last question was answered."""
        self._look_seconds = look_seconds
        self._clock = clock
        self._rollouts: dict[str, Rollout] = {}
        self._ahead = 0.0
        """The clock of Redis minus ours."""
        self._known = asyncio.Event()
        self._moved = asyncio.Event()
        self._reports: dict[str, PublishReport] = {}
        self._counters: list[tuple[str, Callable[[], tuple[int, int]], list[int]]] = []
        self._listeners: list[Callable[[], None]] = []

    # -- asking -----------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """The clock of Redis, as well as this process knows it."""
        return self._clock() + self._ahead

    def mode_of(self, stream: StreamName) -> Mode:
        """Where to write this stream's events now."""
        rollout = of_kind(self._rollouts, stream)
        return writing(rollout, stream, self.now(), enabled=self.enabled, has_streams=self.has_streams)

    def reads_stream(self, stream: StreamName) -> bool:
        """Whether viewers are served from the stream now; else from the old channel."""
        rollout = of_kind(self._rollouts, stream)
        return reading(rollout, stream, self.now(), enabled=self.enabled, has_streams=self.has_streams)

    def rollout_of(self, kind: str) -> Rollout:
        """How far a kind has moved, as this process knows."""
        return self._rollouts.get(kind, Rollout())

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that anybody ever moved."""
        return tuple(self._rollouts)

    def governs(self, stream: StreamName) -> bool:
        """Whether anybody ever moved streams of this kind; else the settings say how they are written and read."""
        return stream.kind in self._rollouts

    def follow_counts(self, kind: str, read: Callable[[], tuple[int, int]]) -> None:
        """Report what a publisher counts, its tries and its errors since it was made, as they grow."""
        self._counters.append((kind, read, [0, 0]))

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have `listener` called after each change that is heard of; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # -- reporting --------------------------------------------------------------------------------------------------

    def count(self, stream: StreamName, *, published: int = 0, errors: int = 0, fallbacks: int = 0) -> None:
        """Count how publishing went; the guards hear of it within a second or two."""
        self._add(PublishReport(kind=stream.kind, published=published, errors=errors, fallbacks=fallbacks))

    def _add(self, report: PublishReport) -> None:
        before = self._reports.get(report.kind)
        self._reports[report.kind] = report if before is None else before.plus(report)

    async def _report(self) -> None:
        for kind, read, before in self._counters:
            tries, errors = read()
            if tries > before[0]:
                self._add(PublishReport(kind=kind, published=tries - before[0], errors=errors - before[1]))
            before[:] = tries, errors
        reports, self._reports = self._reports, {}
        for report in reports.values():
            try:
                await self.store.report(report)
            except LogUnavailable:
                self._add(report)

    # -- looking ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[RolloutView]:
        """Look while the body runs. Entering waits for the first answer, but not for a Redis that is away."""
        task = asyncio.create_task(self.run(), name="rollout view")
        try:
            await self.wait_known()
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def wait_known(self, seconds: float = 2.0) -> bool:
        """Wait for the first answer. False: there is none yet."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._known.wait()
        return self._known.is_set()

    async def wait_moved(self) -> None:
        """Wait until some kind was ever moved."""
        await self._moved.wait()

    async def run(self) -> None:
        """Look until cancelled. A Redis that is away is no error: what was known last goes on."""
        while True:
            try:
                await self.look()
                await self._report()
            except LogUnavailable as exc:
                if self.up:
                    log.warning("the rollout cannot be asked; the last known goes on", extra={"error": str(exc)})
                self.up = False
            await asyncio.sleep(self._look_seconds * random.uniform(0.8, 1.0))

    async def look(self) -> Look:
        """Ask once, now.

        Raises:
            LogUnavailable: no answer; what was known stays.
        """
        has_streams = await self.store.has_streams()
        look = await self.store.look()
        # Redis told its time before this: our idea of it is late rather than early, and no change settles too soon.
        self._ahead = look.now - self._clock()
        rollouts = dict(look.rollouts) | self._gone(look)
        changed = rollouts != self._rollouts
        self.has_streams, self._rollouts, self.version = has_streams, rollouts, look.version
        self.up = True
        self._known.set()
        if self._rollouts:
            self._moved.set()
        if changed:
            known = {kind: f"{each.percent} %" for kind, each in self._rollouts.items()}
            log.info("the rollout is", extra={"kinds": known, "version": self.version})
            for listener in tuple(self._listeners):
                listener()
        return look

    def _gone(self, look: Look) -> dict[str, Rollout]:
        """Kinds whose state is lost, with a Redis that lost its memory or by a roll-back of a full one.

        For them it is a roll-back that was made now: writers must not leave the streams before readers have.
        """
        gone = {}
        for kind, before in self._rollouts.items():
            if look.rollouts.get(kind, _AT_REST) != _AT_REST:
                continue
            if before.percent:
                gone[kind] = rolled_back(before, now=look.now, by="", reason="what was set is gone")
            elif not before.is_settled(look.now):
                gone[kind] = before
        return gone


_AT_REST = Rollout()
