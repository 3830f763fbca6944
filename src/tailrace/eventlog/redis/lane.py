"""The way of one publisher's calls to one stream: in order, numbered, one script call under way at a time.

Rules of this file
1. A lane has a producer name (`pid`) and counts its script calls. A number is used for one set of events only.
2. Plain appends that wait together leave together, in one numbered call; one with a condition leaves alone.
3. When nobody can say what became of a call, the lane takes a new name: what follows cannot be confused with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import msgspec

from tailrace.core.codec import Prepared
from tailrace.core.kinds import StreamKind
from tailrace.core.names import StreamName
from tailrace.errors import OutcomeUnknown
from tailrace.eventlog.base import Appended
from tailrace.eventlog.limits import MAX_CALL_BYTES, MAX_CALL_EVENTS
from tailrace.eventlog.receipt import Receipt, new_producer
from tailrace.eventlog.redis.keys import StreamKeys
from tailrace.eventlog.redis.node import Node
from tailrace.eventlog.redis.scripts import TOMBSTONE_MS

__all__ = ["Batch", "Call", "Lane", "Policy", "append_words"]


HARD_CAP_FACTOR = 10
"""A slow group keeps at most this many times the kind's `max_length`."""


class Policy(msgspec.Struct, frozen=True):
    """A stream kind as the append script takes it."""

    max_length: int
    max_age: str
    rest: str
    """Hard cap, idle life, life after close, how long meta stays longer."""
    short: bool
    """Whether appends may try the script's short way."""

    @classmethod
    def of(cls, kind: StreamKind) -> Policy:
        """The policy of a kind."""
        cap = kind.max_length * HARD_CAP_FACTOR
        idle, closed = _ms(kind.idle_ttl_seconds, "-"), _ms(kind.closed_ttl_seconds, "-")
        rest = f"{cap} {idle} {closed} {TOMBSTONE_MS}"
        return cls(kind.max_length, _ms(kind.max_age_seconds, ""), rest, kind.idle_ttl_seconds is None)


def _ms(seconds: float | None, none: str) -> str:
    return none if seconds is None else str(max(1, round(seconds * 1000)))


class Call:
    """One caller's append, waiting or under way."""

    __slots__ = ("alone", "close", "deadline", "events", "expected_seq", "future", "owner_epoch", "size")

    def __init__(
        self,
        events: Sequence[Prepared],
        size: int,
        deadline: float,
        future: asyncio.Future[list[Appended]],
        expected_seq: int | None = None,
        owner_epoch: int | None = None,
        close: bool = False,
    ) -> None:
        self.events = events
        self.size = size
        self.deadline = deadline
        self.future = future
        self.expected_seq = expected_seq
        self.owner_epoch = owner_epoch
        self.close = close
        self.alone = close or expected_seq is not None
        """Whether it must not share a script call."""

    def fail(self, error: BaseException) -> None:
        """Tell the caller, if it still listens."""
        if not self.future.done():
            self.future.set_exception(error)


class Batch:
    """One numbered script call."""

    __slots__ = ("args", "calls", "count", "deadline", "labels", "maybe_sent", "n", "over", "pid", "sent", "size")

    def __init__(self, pid: str, n: int, calls: list[Call]) -> None:
        self.pid = pid
        self.n = n
        self.calls = calls
        self.args: list[bytes | str | int] = []
        self.labels = 0
        """0: no event has labels; 1: some has a uid; 2: others only."""
        self.sent = False
        """Whether it is under way now."""
        self.maybe_sent = False
        """Whether the server may have seen it in an earlier try."""
        self.over = False
        """Given up; an answer that still comes is of no interest."""
        self.count = 0
        self.size = 0
        self.deadline = calls[0].deadline
        for call in calls:
            self.count += len(call.events)
            self.size += call.size
            if call.deadline > self.deadline:
                self.deadline = call.deadline

    def receipt(self, stream: StreamName, call: Call) -> Receipt:
        """What settles `call` later."""
        offset = 0
        for other in self.calls:
            if other is call:
                break
            offset += len(other.events)
        first = self.calls[0]
        return Receipt(
            stream=stream,
            pid=self.pid,
            n=self.n,
            events=tuple(event for other in self.calls for event in other.events),
            offset=offset,
            count=len(call.events),
            expected_seq=first.expected_seq,
            owner_epoch=first.owner_epoch,
            close=first.close,
        )

    def answer(self, stored: list[Appended]) -> None:
        """Give each caller its part."""
        at = 0
        for call in self.calls:
            end = at + len(call.events)
            if not call.future.done():
                call.future.set_result(stored[at:end])
            at = end

    def unknown(self, stream: StreamName, call: Call) -> OutcomeUnknown:
        """What `call` is told when nobody can say what became of the batch."""
        receipt = self.receipt(stream, call)
        return OutcomeUnknown("the log did not say whether it stored the events", receipt=receipt, stream=stream)

    def fail(self, error: BaseException) -> None:
        """Tell all callers."""
        for call in self.calls:
            call.fail(error)


class Lane:
    """See the rules above."""

    __slots__ = (
        "attempted",
        "batch",
        "finding",
        "keys",
        "n",
        "node",
        "pid",
        "policy",
        "queued",
        "skipped",
        "slot",
        "solo",
        "stream",
        "used",
        "waiting",
    )

    def __init__(
        self, stream: StreamName, keys: StreamKeys, slot: int | None, policy: Policy, node: Node | None
    ) -> None:
        self.stream = stream
        self.keys = keys
        self.slot = slot
        self.policy = policy
        self.node = node
        self.pid = new_producer()
        self.n = 0
        self.waiting: deque[Call] = deque()
        self.batch: Batch | None = None
        self.queued = False
        self.finding = False
        self.attempted = False
        """Whether its next call may have been sent before, by somebody else."""
        self.used = True
        self.skipped = 0
        """Bytes of calls whose callers went away before they were sent."""
        self.solo = 0
        """How many of the next calls leave alone, because together one of them was refused."""

    def renew(self) -> None:
        """Take a new name: nothing that was sent under the old one matters for what follows."""
        self.pid = new_producer()
        self.n = 0

    def calls(self) -> list[Call]:
        """All that waits or is under way."""
        return [*(self.batch.calls if self.batch is not None else ()), *self.waiting]

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return self.batch is None and not self.waiting

    def next_batch(self) -> Batch | None:
        """Take what waits and may leave together; None: nothing does."""
        waiting = self.waiting
        calls: list[Call] = []
        count = size = 0
        while waiting:
            call = waiting[0]
            if call.future.done():
                waiting.popleft()
                self.skipped += call.size
                continue
            if calls:
                count_with, size_with = count + len(call.events), size + call.size
                together = not call.alone and call.owner_epoch == calls[0].owner_epoch
                if not together or count_with > MAX_CALL_EVENTS or size_with > MAX_CALL_BYTES:
                    break
            waiting.popleft()
            calls.append(call)
            count += len(call.events)
            size += call.size
            if self.solo:
                self.solo -= 1
                break
            if call.alone:
                break
        if not calls:
            return None
        self.n += 1
        return Batch(self.pid, self.n, calls)

    def put_back(self, batch: Batch, *, alone: bool = False) -> None:
        """A call was definitely not stored: its callers are first in line again."""
        self.waiting.extendleft(reversed(batch.calls))
        if alone:
            self.solo = len(batch.calls)


def append_words(lane: Lane, batch: Batch, version: tuple[int, ...]) -> list[bytes | str | int]:
    """KEYS and ARGV of the append script (lua/append.lua), for a server of this version."""
    first, keys, kind, labels = batch.calls[0], lane.keys, lane.policy, batch.labels
    expected, epoch, minid = first.expected_seq, first.owner_epoch, version >= (6, 2)
    short = minid and kind.short and not labels and expected is epoch is None and not first.close
    rest = (
        f"{1 if batch.maybe_sent else '-'} {'-' if expected is None else expected} "
        f"{'-' if epoch is None else epoch} {1 if first.close else '-'} {kind.rest} {1 if minid else '-'} "
        f"{batch.count} {labels}"
    )
    return [
        *((3, keys.events, keys.meta, keys.uids) if labels == 1 else (2, keys.events, keys.meta)),
        batch.pid,
        batch.n,
        "short" if short else "long",
        kind.max_length,
        kind.max_age,
        "SPUBLISH" if lane.slot is not None and version >= (7,) else "PUBLISH",
        rest,
        *batch.args,
    ]
