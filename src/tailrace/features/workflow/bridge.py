"""The bridge: what unmodified producers publish on old channels becomes durable, resumable streams.

Rules of this file
1. Several bridges hear the same; one writes, while it knows that it holds the lease. Its appends carry the lease's
   epoch: one that lost the lease without knowing is refused (Fenced) and stops.
2. Every message that the leader heard is stored once, in the order of its channel: two equal ones are two.
3. What may be missing is said in the stream, by `events.skipped`, before the first message that follows: after a
   take-over in the streams that were heard of meanwhile; after a lost link in those of the minute before and, since one
   may have begun unheard, of the minute after, as after a time without any bridge; where a message did not fit. `count`
   is null where nobody can know.
4. What waits for Redis is bounded in bytes; over it the newest are left out and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict, deque
from itertools import islice
from typing import Any

import msgspec

from tailrace.core.codec import encode
from tailrace.core.event import SKIPPED, Event
from tailrace.core.kinds import Kinds
from tailrace.core.names import StreamName
from tailrace.errors import ConfigError, Fenced, InvalidStream, LogError, OutcomeUnknown, TailraceError, TooLarge
from tailrace.eventlog.limits import MAX_CALL_BYTES
from tailrace.eventlog.redis.bridge import Leadership
from tailrace.eventlog.redis.log import RedisLog
from tailrace.eventlog.redis.pubsub import Channels, Listener
from tailrace.features.workflow.ending import let_expire
from tailrace.features.workflow.message import ENDS, ChannelTemplate, event_of, stream_of

__all__ = ["Bridge", "BridgeCounts"]

log = logging.getLogger("tailrace.bridge")

LEASE_SECONDS = 5.0
RENEW_SECONDS = 1.0
MAX_WAITING_BYTES = 67_108_864
OVERHEAD_BYTES = 200
BATCH_EVENTS = 250
RECENT_SECONDS = 60.0
MAX_RECENT = 10_000
RETRY_SECONDS = 0.2


class BridgeCounts(msgspec.Struct):
    """What a bridge did since its start."""

    heard: int = 0
    stored: int = 0
    skipped: int = 0
    takeovers: int = 0


class _Line:
    """What waits for one stream. One append is under way at a time."""

    def __init__(self) -> None:
        self.events: deque[tuple[Event, int, float]] = deque()
        """With what each costs, and since when it waits."""
        self.skipped = 0
        """Messages left out behind the last event here."""
        self.reason = ""

    def add(self, event: Event, size: int = 0) -> None:
        """Put one behind the others."""
        self.events.append((event, size, asyncio.get_running_loop().time()))

    def batch(self) -> list[tuple[Event, int]]:
        """What may leave in one call, with what each costs."""
        batch: list[tuple[Event, int]] = []
        total = 0
        for event, size, _ in islice(self.events, BATCH_EVENTS):
            total += size or OVERHEAD_BYTES
            if batch and total > MAX_CALL_BYTES:
                break
            batch.append((event, size))
        return batch


class Bridge:
    """See the rules above. Run `run` as an owned task.

    Args:
        url: of Redis.
        pattern: the channels, with one `*` where the workflow's id is.
        key_prefix: of the streams' keys.
        kinds: the policies, where they are not the usual ones.
        max_waiting_bytes: what may wait for Redis.
        lease_seconds: how long a leader that is not heard keeps its place.

    Raises:
        ConfigError: a URL, prefix or pattern that cannot be used, or a pattern that hears our own channels.
    """

    def __init__(
        self,
        url: str,
        pattern: str,
        *,
        key_prefix: str = "tailrace:",
        kinds: Kinds | None = None,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        if pattern.count("*") != 1:
            raise ConfigError("a pattern has one * in it, where the workflow's id is")
        self.counts = BridgeCounts()
        self.leads = False
        self._template = ChannelTemplate(pattern.replace("*", "{id}"))
        self._kinds = kinds if kinds is not None else Kinds()
        self._log = RedisLog.connect(url, prefix=key_prefix, kinds=self._kinds)
        own = self._log.keys.of(stream_of("1")).push.decode()
        if self._template.workflow_id(own) is not None:
            raise ConfigError(f"the pattern would hear tailrace's own channels ({own}): set another key_prefix")
        self._channels = Channels(self._log.topology)
        self._lease = Leadership(self._log.topology, pattern, prefix=key_prefix)
        self._listener = Listener(
            self._channels, prefix=key_prefix, on_message=self._heard, on_link=self._link, patterns=[pattern]
        )
        self._lease_seconds = lease_seconds
        self._max_bytes = max_waiting_bytes
        self._waiting_bytes = 0
        self._epoch = 0
        self._lease_until = 0.0
        self._lines: dict[StreamName, _Line] = {}
        self._recent: OrderedDict[StreamName, tuple[float, int]] = OrderedDict()
        """Streams that were heard of in the last minute: when first and how often since the leader was last known."""
        self._lost_at: float | None = None
        """Since when the channels were not heard; None: nothing is to be said of it."""
        self._told_on = 0
        """The connection on which that was said."""
        self._deaf_until = float("-inf")
        """Before this not everything was heard."""
        self._hears_since: float | None = None
        self._dropped = False
        """Whether this bridge has led, and let go of what waited then."""
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Listen and write until cancelled; then leave the lease to another."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._listener.run(), name="bridge-channels")
                group.create_task(self._keep_lease(), name="bridge-lease")
        finally:
            self._group = None
            with contextlib.suppress(TailraceError, TimeoutError):
                async with asyncio.timeout(2.0):
                    await self._lease.leave()
            await self._lease.aclose()
            await self._channels.aclose()
            await self._log.aclose()

    @property
    def hears(self) -> bool:
        """Whether the channels are heard now: proved every second."""
        return self._listener.up

    @property
    def waiting_bytes(self) -> int:
        """What waits for Redis now."""
        return self._waiting_bytes

    # -- who writes ---------------------------------------------------------------------------------------------------

    async def _keep_lease(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            if self._listener.up:
                begun = now()
                try:
                    # Who follows has to know how far back messages may be missing.
                    waits = [begun - line.events[0][2] for line in self._lines.values() if line.events]
                    turn = await self._lease.lead(self._lease_seconds, waiting_seconds=max(waits, default=0.0))
                except LogError:
                    pass  # it may still be ours; see below
                else:
                    self._take(turn.leads, turn.epoch, turn.taken, turn.silent_seconds, begun)
            self._may_write()
            await asyncio.sleep(RENEW_SECONDS)

    def _may_write(self) -> bool:
        """Whether the lease is ours now. Asked before every write: a stream that only begins does not fence us out."""
        if self.leads and asyncio.get_running_loop().time() >= self._lease_until:
            self._stop_leading("the lease was not renewed")
        return self.leads

    def _take(self, leads: bool, epoch: int, taken: bool, silent: float, begun: float) -> None:
        if not leads:
            if self.leads:
                self._stop_leading("another bridge leads")
            self._dropped = False  # that one says what may be missing
            self._forget_before(begun - silent - self._lease_seconds - RENEW_SECONDS)
            return
        self._lease_until = begun + self._lease_seconds
        if not self.leads or taken:
            # Ours since an answer that was lost: then nobody knows for how long it was silent. Or we had let go of it.
            unknown = not taken or self._dropped
            self.leads, self._epoch, self._dropped = True, epoch, False
            self.counts.takeovers += 1
            log.info("this bridge leads", extra={"epoch": epoch})
            if silent or unknown:
                # What the one before heard and did not store, and what was heard while nobody led.
                if self._hears_since is not None and begun - self._hears_since < silent:
                    self._deaf_until = begun  # for a time there was none that heard
                seconds = silent + 2 * RENEW_SECONDS
                if unknown or begun - self._deaf_until < seconds:
                    seconds += RECENT_SECONDS  # not everything was heard
                self._announce("takeover", seconds)
                self._lost_at = None
        self._forget_before(begun - RECENT_SECONDS)

    def _stop_leading(self, why: str) -> None:
        log.warning("this bridge does not lead any more", extra={"why": why})
        self.leads, self._dropped = False, True
        now = asyncio.get_running_loop().time()
        for stream in self._lines:
            self._recent[stream] = (now, self._recent.get(stream, (now, 0))[1])
            self._recent.move_to_end(stream)
        self._lines.clear()
        self._waiting_bytes = 0

    # -- what is heard ------------------------------------------------------------------------------------------------

    def _heard(self, channel: bytes, message: bytes) -> None:
        workflow_id = self._template.workflow_id(channel.decode(errors="replace"))
        if workflow_id is None:
            return
        try:
            stream = stream_of(workflow_id)
        except InvalidStream:
            self.counts.skipped += 1
            return
        self.counts.heard += 1
        now = asyncio.get_running_loop().time()
        leads = self._may_write()
        if self._lost_at is not None:
            self._say_lost(now)
        if leads and stream not in self._recent and now - self._deaf_until < RECENT_SECONDS:
            self._say_skipped(stream, "link", 0)
        _, heard = self._recent.get(stream, (0.0, 0))
        self._recent[stream] = (now, heard + 1)
        self._recent.move_to_end(stream)
        if len(self._recent) > MAX_RECENT:
            self._recent.popitem(last=False)
        if leads:
            self._put(stream, message)

    def _put(self, stream: StreamName, message: bytes) -> None:
        line = self._line(stream)
        limit = self._kinds.of(stream).max_event_bytes
        try:
            event = event_of(message, max_bytes=limit)
            stored = encode(event.data, max_bytes=limit)
        except TooLarge:
            self._skip(line, "too_large")
            return
        size = max(len(message), len(stored)) + OVERHEAD_BYTES
        if self._waiting_bytes + size > self._max_bytes:
            self._skip(line, "full")
            return
        self._flush_skipped(line)
        line.add(event, size)
        self._waiting_bytes += size

    def _line(self, stream: StreamName) -> _Line:
        line = self._lines.get(stream)
        if line is None:
            line = self._lines[stream] = _Line()
            assert self._group is not None  # noqa: S101 - only the running listener calls this
            self._group.create_task(self._store(stream, line), name=f"bridge {stream}")
        return line

    def _skip(self, line: _Line, reason: str) -> None:
        if line.reason and line.reason != reason:
            self._flush_skipped(line)
        line.skipped += 1
        line.reason = reason
        self.counts.skipped += 1

    def _flush_skipped(self, line: _Line) -> None:
        if line.skipped:
            line.add(Event(SKIPPED, {"count": line.skipped, "reason": line.reason}))
            line.skipped, line.reason = 0, ""

    # -- what may be missing ------------------------------------------------------------------------------------------

    def _link(self, up: bool) -> None:
        now = asyncio.get_running_loop().time()
        if self._hears_since is None:
            self._hears_since = now
        if not up:
            self._lost_at = now
        elif self._lost_at is not None:
            self._say_lost(now)
            self._lost_at = None

    def _say_lost(self, now: float) -> None:
        """The channels are heard again: once for each connection, since one that was not proved may have been lost."""
        assert self._lost_at is not None  # noqa: S101 - whoever calls this looked
        self._deaf_until = now
        if self.leads and self._told_on != self._listener.connections:
            self._told_on = self._listener.connections
            self._announce("link", now - self._lost_at + RECENT_SECONDS)

    def _announce(self, reason: str, seconds: float) -> None:
        """Say in every stream that was heard of lately that messages may be missing."""
        now = asyncio.get_running_loop().time()
        for stream, (last, heard) in list(self._recent.items()):
            if now - last <= seconds:
                self._say_skipped(stream, reason, heard)

    def _say_skipped(self, stream: StreamName, reason: str, heard: int) -> None:
        data: dict[str, Any] = {"count": None, "reason": reason, "before": round(time.time() * 1000)}
        if reason == "takeover":
            data["at_most"] = heard
        self._line(stream).add(Event(SKIPPED, data))

    def _forget_before(self, then: float) -> None:
        while self._recent:
            stream, (last, _) = next(iter(self._recent.items()))
            if last >= then:
                return
            del self._recent[stream]

    # -- storing ------------------------------------------------------------------------------------------------------

    async def _store(self, stream: StreamName, line: _Line) -> None:
        """Append what waits, until nothing does or this bridge does not lead any more."""
        await asyncio.sleep(0)  # what one read of the connection brought leaves together
        while self._lines.get(stream) is line:
            if not line.events:
                self._flush_skipped(line)
            if not line.events:
                del self._lines[stream]
                return
            batch = line.batch()
            if not await self._append(stream, line, [event for event, _ in batch]):
                return
            counted = self._lines.get(stream) is line  # what was let go of meanwhile is not
            for _, size in batch:
                line.events.popleft()
                self._waiting_bytes -= size if counted else 0
            self.counts.stored += len(batch)
            if any(event.type in ENDS for event, _ in batch):
                await let_expire(self._log, stream)

    async def _append(self, stream: StreamName, line: _Line, events: list[Event]) -> bool:
        receipt: object = None
        while self._may_write() and self._lines.get(stream) is line:
            try:
                if receipt is not None:
                    await self._log.retry(receipt)
                else:
                    await self._log.append(stream, events, owner_epoch=self._epoch)
            except Fenced:
                self._stop_leading("its epoch is over")
                return False
            except OutcomeUnknown as exc:
                receipt = exc.receipt
            except LogError as exc:
                if not exc.retryable:
                    raise
            except TailraceError as exc:
                # A closed stream, for one: it is another's, and is left as it is.
                log.warning("messages were refused", extra={"stream": stream, "code": exc.code})
                self.counts.skipped += len(events)
                return True
            else:
                return True
            await asyncio.sleep(RETRY_SECONDS)
        return False
