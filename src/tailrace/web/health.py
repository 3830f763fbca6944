"""Whether this process works: a real event goes out through the log and comes back through the hub, every second."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

from tailrace.codes import CloseCode
from tailrace.core.cursor import Special
from tailrace.core.event import Event, Record
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.errors import LogError, TailraceError
from tailrace.eventlog.base import Log
from tailrace.hub.block import Block, SinkClosed
from tailrace.hub.hub import Hub
from tailrace.observe import Metrics

__all__ = ["Probe"]

log = logging.getLogger("tailrace.health")

PERIOD_SECONDS = 1.0
ROUND_SECONDS = 2.0
RED_SECONDS = 4.0
"""Without a round trip for this long the log counts as away."""


class _ProbeSink:
    """Takes what the hub gives and remembers the last id."""

    def __init__(self) -> None:
        self.last: EntryId | None = None
        self.came = asyncio.Event()

    def write(self, block: Block) -> bool:
        for item in block.items:
            if isinstance(item, Record):
                self.last = item.id
        self.came.set()
        return True

    async def wait_writable(self) -> None:
        raise SinkClosed


class Probe:
    """Publishes to a stream of its own and waits for it, for readiness."""

    def __init__(self, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        # One of 16: a stream's meta outlives it by days, and gateways start again and again. Others may share it.
        self.stream = StreamName.parse(f"probe:{secrets.randbelow(16):x}")
        self.seconds: float | None = None
        """How long the last round trip took."""
        self.reason = "starting"
        """Why it is red, in one word: starting, or an error's code."""
        self._metrics = metrics
        self._clock = clock
        self._came_at: float | None = None

    @property
    def healthy(self) -> bool:
        """Whether a round trip succeeded a moment ago."""
        return self._came_at is not None and self._clock() - self._came_at < RED_SECONDS

    async def run(self, event_log: Log, hub: Hub) -> None:
        """Probe until cancelled; what fails is told by `healthy`, never raised."""
        await hub.wait_running()
        while True:
            try:
                await self._follow(event_log, hub)
            except TailraceError as error:
                self._fail(error.code)
            except SinkClosed:
                self._fail(CloseCode.GOING_AWAY.name)
            await asyncio.sleep(PERIOD_SECONDS / 2)

    async def _follow(self, event_log: Log, hub: Hub) -> None:
        sink = _ProbeSink()
        subscription = await hub.open({self.stream: Special.NOW}, sink, stays_open=True)
        feeding = asyncio.create_task(subscription.run(), name="probe-reader")
        try:
            while not feeding.done():
                wanted = self._clock() + PERIOD_SECONDS
                await self._round(event_log, sink)
                await asyncio.wait((feeding,), timeout=max(0.05, wanted - self._clock()))
                self._metrics.event_loop_lag.set(max(0.0, self._clock() - wanted))
        finally:
            subscription.close(CloseCode.GOING_AWAY)
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            subscription.detach()

    async def _round(self, event_log: Log, sink: _ProbeSink) -> None:
        begun = self._clock()
        try:
            async with asyncio.timeout(ROUND_SECONDS):
                stored = (await event_log.append(self.stream, [Event("probe", None)]))[0].id
                while sink.last is None or sink.last < stored:
                    sink.came.clear()
                    await sink.came.wait()
        except TimeoutError:
            self._fail("TIMEOUT")
        except LogError as error:
            self._fail(error.code)
        else:
            self._succeed(begun)

    def _succeed(self, begun: float) -> None:
        if not self.healthy:
            log.info("the log is ready")
        self._came_at = self._clock()
        self.seconds, self.reason = self._came_at - begun, "ok"
        self._metrics.probe_seconds.set(self.seconds)
        self._metrics.log_up.set(1)

    def _fail(self, reason: str) -> None:
        if self.reason != reason:
            log.warning("the log does not pass the probe", extra={"reason": reason})
        self.reason = reason
        if not self.healthy:
            self._metrics.log_up.set(0)
