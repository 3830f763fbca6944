"""The hub: everything this process reads from the log, once, for all of its readers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import msgspec

from tailrace.codes import CloseCode
from tailrace.core.chain import Position, start
from tailrace.core.cursor import Resume, Since, Special
from tailrace.core.event import Degraded, Record
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.kinds import Kinds, Start
from tailrace.core.names import StreamName
from tailrace.core.page import Head, Page
from tailrace.errors import LogError, LogUnavailable
from tailrace.eventlog.base import Log, Tail
from tailrace.hub.block import Sink
from tailrace.hub.failing import Failing
from tailrace.hub.place import place_of_time
from tailrace.hub.subscription import Lane, Subscription
from tailrace.hub.together import together
from tailrace.hub.topic import PAGE_RECORDS, TAIL_BYTES, Topic

__all__ = ["Hub", "HubStatistics"]

log = logging.getLogger("tailrace.hub")

TAILS_BYTES = 67_108_864
"""What the tails of all topics hold together, in equal shares. With objects and frames it is some 3 times as much."""
PARALLEL_HEALS = 64
LINGER_SECONDS = 10.0
"""A topic without readers is kept this long, so that a refresh finds it warm."""
WAVES = 20


class HubStatistics(msgspec.Struct, frozen=True):
    """What the hub holds right now, and what it did since its start."""

    topics: int
    subscriptions: int
    live_lanes: int
    lanes: int
    heals: int
    degraded: bool


class Hub:
    """Fan-out of one process; the listener of one tail.

    `run` owns every task of the hub. A defect in one of them ends `run` with that error.
    """

    def __init__(self, event_log: Log, kinds: Kinds, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = event_log
        self._kinds = kinds
        self._clock = clock
        self._tail: Tail = event_log.open_tail(self)
        self._topics: dict[StreamName, Topic] = {}
        self._attaching: dict[StreamName, asyncio.Task[None]] = {}
        self._dirty: dict[Topic, None] = {}
        self._subscriptions: dict[Subscription, None] = {}
        self._group: asyncio.TaskGroup | None = None
        self._running = asyncio.Event()
        self._loads: set[asyncio.Task[Any]] = set()
        self._heal_slots = asyncio.Semaphore(PARALLEL_HEALS)
        self._recovered = asyncio.Event()
        self._recovered.set()
        self._heals = 0
        self.failing = Failing(lambda: self._clock())

    # -- life ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Own the tail, the healing reads and the upkeep, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._running.set()
                group.create_task(self._tail.run(), name="tail")
                group.create_task(self._upkeep(), name="hub-upkeep")
        finally:
            self._group = None
            self._running.clear()
            for task in self._loads:
                task.cancel()
            for subscription in list(self._subscriptions):
                subscription.close(CloseCode.GOING_AWAY)

    async def wait_running(self) -> None:
        """Wait until `run` has begun."""
        await self._running.wait()

    async def drain(self, window_seconds: float) -> None:
        """Send every reader away, in waves over the window, so that they do not come back all at once."""
        waiting = list(self._subscriptions)
        random.shuffle(waiting)
        size = max(1, -(-len(waiting) // WAVES))
        for index in range(0, len(waiting), size):
            for subscription in waiting[index : index + size]:
                subscription.close(CloseCode.GOING_AWAY)
            if index + size < len(waiting):
                await asyncio.sleep(window_seconds / WAVES)
        for subscription in list(self._subscriptions):
            # Whoever was being let in when it began.
            subscription.close(CloseCode.GOING_AWAY)

    @property
    def degraded(self) -> bool:
        """Whether the log does not answer right now."""
        return not self._recovered.is_set()

    async def wait_recovered(self, patience: float = 1.0) -> None:
        """Wait until the log answers again, but look again after `patience` seconds at most."""
        if self._recovered.is_set():
            # The failure was not the tail's: give the log a moment instead of asking in a circle.
            await asyncio.sleep(random.uniform(0.05, 0.25))
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._recovered.wait()

    def statistics(self) -> HubStatistics:
        """Counts for health and metrics."""
        return HubStatistics(
            topics=len(self._topics),
            subscriptions=len(self._subscriptions),
            live_lanes=sum(len(topic.live) for topic in self._topics.values()),
            lanes=sum(topic.lanes for topic in self._topics.values()),
            heals=self._heals,
            degraded=self.degraded,
        )

    # -- readers -------------------------------------------------------------------------------------------

    async def open(
        self,
        resume: Mapping[StreamName, Resume],
        sink: Sink,
        *,
        stays_open: bool = False,
        conflate: bool = False,
        compact: bool = False,
    ) -> Subscription:
        """Make a subscription that is ready to `run`: every stream is watched and its starting position is known.

        Args:
            resume: where to begin in each stream.
            sink: who is given the blocks.
            stays_open: do not end when the last stream ended; others may be added.
            conflate: while the reader lags, give it only the latest record per key.
            compact: while the reader is behind, give it pieces of text that follow each other as one record.

        Raises:
            LogUnavailable: the log did not answer; nothing is left behind.
        """
        subscription = Subscription(self, sink, stays_open=stays_open, conflate=conflate, compact=compact)
        self._subscriptions[subscription] = None
        try:
            if len(resume) == 1:
                for stream, where in resume.items():
                    await subscription.add(stream, where)
            else:
                await together(subscription.add(stream, where) for stream, where in resume.items())
        except BaseException:
            subscription.detach()
            raise
        return subscription

    async def open_lane(self, subscription: Subscription, stream: StreamName, resume: Resume) -> Lane:
        """Watch a stream for a subscription and find where it begins. `Subscription.add` calls it."""
        topic = await self._attached(stream)
        try:
            kind = self._kinds.of(stream)
            position = await self._resolve(topic, resume, kind.start)
        except BaseException:
            self._leave(topic)
            raise
        return Lane(subscription, topic, position, finite=kind.start is Start.FIRST)

    def readers(self, stream: StreamName) -> int:
        """How many subscriptions of this process read a stream."""
        topic = self._topics.get(stream)
        return topic.lanes if topic is not None else 0

    def release_lane(self, lane: Lane) -> None:
        """The lane is not used any more."""
        lane.topic.live.pop(lane, None)
        lane.live = False
        self._leave(lane.topic)

    def forget(self, subscription: Subscription) -> None:
        """The subscription has ended."""
        self._subscriptions.pop(subscription, None)

    async def _resolve(self, topic: Topic, resume: Resume, where: Start) -> Position:
        if resume is Special.DEFAULT:
            resume = ZERO if where is Start.FIRST else Special.NOW
        if resume is Special.NOW:
            return topic.position
        if isinstance(resume, EntryId):
            return start(resume)
        if isinstance(resume, Since):
            return await place_of_time(self._log, topic.stream, resume)
        raise TypeError(f"not a place to resume from: {resume!r}")

    # -- topics --------------------------------------------------------------------------------------------

    async def _attached(self, stream: StreamName) -> Topic:
        topic = self._topics.get(stream)
        if topic is None:
            topic = self._topics[stream] = Topic(stream, self._read, self._spawn, self._tail_share)
            self._attaching[stream] = self._spawn(self._attach(topic))
        topic.lanes += 1
        attaching = self._attaching.get(stream)
        if attaching is not None:
            try:
                await asyncio.shield(attaching)
            except BaseException:
                self._leave(topic)
                raise
        return topic

    def _tail_share(self) -> int:
        return min(TAIL_BYTES, TAILS_BYTES // max(1, len(self._topics)))

    async def _attach(self, topic: Topic) -> None:
        stream = topic.stream
        try:
            head = await self._tail.watch(stream)
        except BaseException:
            self._topics.pop(stream, None)
            raise
        finally:
            self._attaching.pop(stream, None)
        topic.attach(head)
        if topic.heal_again:
            self.doubt(topic)

    def _leave(self, topic: Topic) -> None:
        topic.lanes -= 1
        if topic.lanes == 0:
            topic.idle_since = self._clock()

    async def _upkeep(self) -> None:
        """Forget what nobody reads any more, pages at once, topics after a while; tell readers what they must know."""
        while True:
            await asyncio.sleep(1.0)
            self.failing.tell(self._topics, self._subscriptions, degraded=self.degraded)
            for subscription in tuple(self._subscriptions):
                subscription.remind()
            for topic in self._topics.values():
                if topic.lanes == len(topic.live):
                    # All have what the pages hold: kept, they would be the larger part of an idle connection's memory.
                    topic.forget_pages()
            before = self._clock() - LINGER_SECONDS
            idle = [
                topic
                for topic in self._topics.values()
                if topic.lanes == 0 and topic.attached and not topic.healing and topic.idle_since < before
            ]
            for topic in idle:
                del self._topics[topic.stream]
                self._tail.unwatch(topic.stream)

    async def _read(self, stream: StreamName, position: Position, limit: int) -> Page:
        try:
            page = await self._log.read(stream, position.cursor, limit=limit)
        except LogError:
            self.failing.failed(stream)
            raise
        self.failing.succeeded(stream)
        return page

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A short task that several may wait for; the hub holds it, and cancels it when it ends."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._loads.add(task)
        task.add_done_callback(self._loaded)
        return task

    def _loaded(self, task: asyncio.Task[Any]) -> None:
        self._loads.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, LogError):
            log.error("a read failed", exc_info=error)

    # -- what the tail tells (TailListener) ----------------------------------------------------------------

    def on_records(self, stream: StreamName, records: Sequence[Record]) -> None:
        """New records."""
        topic = self._topics.get(stream)
        if topic is None:
            return
        if not topic.push(records):
            self.doubt(topic)
        if topic.dirty:
            self._mark(topic)

    def on_head(self, stream: StreamName, head: Head) -> None:
        """Where a stream really ends."""
        topic = self._topics.get(stream)
        if topic is None:
            return
        if not topic.change_state(head):
            self.doubt(topic)
        if topic.dirty:
            self._mark(topic)

    def on_doubt(self, streams: Sequence[StreamName] | None) -> None:
        """Pushes may have been lost."""
        for stream in self._topics if streams is None else streams:
            topic = self._topics.get(stream)
            if topic is not None:
                self.doubt(topic)

    def on_degraded(self, degraded: bool) -> None:
        """The log stopped, or started again, to answer."""
        if degraded == self.degraded:
            return
        log.warning("the log does not answer" if degraded else "the log answers again")
        if degraded:
            self._recovered.clear()
        else:
            self.failing.clear()
            self._recovered.set()
        notice = Degraded(active=degraded)
        for subscription in tuple(self._subscriptions):
            subscription.notice(notice)

    # -- delivering and healing ----------------------------------------------------------------------------

    def _mark(self, topic: Topic) -> None:
        if not self._dirty:
            asyncio.get_running_loop().call_soon(self._flush)
        self._dirty[topic] = None

    def _flush(self) -> None:
        """Deliver what this loop turn brought, one block per topic."""
        dirty, self._dirty = self._dirty, {}
        for topic in dirty:
            if topic.flush():
                self._mark(topic)

    def doubt(self, topic: Topic) -> None:
        """Read on from the log: something may be missing."""
        if topic.healing:
            topic.heal_again = True
        elif self._group is not None and topic.attached:
            heal = self._heal(topic)
            try:
                self._group.create_task(heal, name=f"heal {topic.stream}")
            except RuntimeError:
                # The hub is ending and takes no more tasks; its readers are about to be sent away.
                heal.close()
                return
            topic.healing = True
            self._heals += 1
        else:
            topic.heal_again = True

    async def _heal(self, topic: Topic) -> None:
        try:
            again = True
            while again:
                topic.heal_again = False
                try:
                    async with self._heal_slots:
                        page = await self._read(topic.stream, topic.ahead, PAGE_RECORDS)
                except LogUnavailable:
                    await self.wait_recovered()
                    continue
                again = topic.take_page(page) or topic.heal_again
                while topic.flush():  # noqa: ASYNC110 - a turn for the others between two blocks
                    await asyncio.sleep(0)
        except LogError as error:
            # Not to be healed by asking again; the readers' own pages will say what they find.
            log.error("a topic cannot be healed", extra={"stream": topic.stream, "code": error.code})
        finally:
            topic.healing = False
            topic.notify()
