"""One reader on two ways at once, while it goes from the one to the other: each message is told once.

Rules of this file
1. Both ways hold the same messages, each in its own time; they are the same when their content is. Two equal messages
   are two: contents are counted, not collected.
2. The leading way is told at once, in its order. What comes on the other waits for its twin; whose twin does not come
   within `GRACE_SECONDS` is told too: it was published on one way only.
3. Where a twin is there as a record, the record is told: it has an id.
4. It is settled when nothing waits, and nothing that the way to be left has told is still to come on the one that
   stays: then the other can be left without loss or repetition.
5. Pure: the clock is the caller's.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from enum import StrEnum
from typing import NamedTuple

__all__ = ["GRACE_SECONDS", "Merge", "Way"]

GRACE_SECONDS = 1.0
MAX_OWED = 10_000
"""Messages whose twins are remembered; beyond, the oldest is forgotten and may be told again."""


class Way(StrEnum):
    """Where messages come from."""

    CHANNEL = "channel"
    STREAM = "stream"


class _Waiting(NamedTuple):
    key: bytes
    frame: bytes
    since: float


class _Owed:
    """Keys that one way has told and the other has yet to bring."""

    def __init__(self) -> None:
        self._times: OrderedDict[bytes, deque[float]] = OrderedDict()
        self._count = 0

    def add(self, key: bytes, now: float) -> None:
        self._times.setdefault(key, deque()).append(now)
        self._times.move_to_end(key)
        self._count += 1
        if self._count > MAX_OWED:
            self.take(next(iter(self._times)))

    def take(self, key: bytes) -> bool:
        times = self._times.get(key)
        if times is None:
            return False
        times.popleft()
        self._count -= 1
        if not times:
            del self._times[key]
        return True

    def forget(self, before: float) -> None:
        for key, times in list(self._times.items()):
            while times and times[0] <= before:
                times.popleft()
                self._count -= 1
            if not times:
                del self._times[key]

    def any_since(self, then: float) -> bool:
        return bool(self._times) and self._times[next(reversed(self._times))][-1] > then


class Merge:
    """See the rules above. `record` and `message` answer the frames to tell now, in order."""

    def __init__(self, lead: Way) -> None:
        self.lead = lead
        self._records: deque[_Waiting] = deque()
        self._messages: deque[_Waiting] = deque()
        self._waiting: Counter[bytes] = Counter()
        """Keys of the records that wait."""
        self._owed_by_stream = _Owed()
        """Told by the channel."""
        self._owed_by_channel = _Owed()
        """Told by the stream."""

    def record(self, key: bytes, frame: bytes, now: float) -> list[bytes]:
        """The stream brought this."""
        if self._owed_by_stream.take(key):
            return []
        if self.lead is Way.CHANNEL:
            self._records.append(_Waiting(key, frame, now))
            self._waiting[key] += 1
            return []
        twin = next((each for each in self._messages if each.key == key), None)
        if twin is not None:
            self._messages.remove(twin)
        else:
            self._owed_by_channel.add(key, now)
        return [frame]

    def message(self, key: bytes, frame: bytes, now: float) -> list[bytes]:
        """The channel brought this."""
        if self._waiting[key]:
            return self._up_to(key, now)
        if self._owed_by_channel.take(key):
            return []
        if self.lead is Way.STREAM:
            self._messages.append(_Waiting(key, frame, now))
            return []
        self._owed_by_stream.add(key, now)
        return [frame]

    def follow(self, lead: Way, now: float) -> list[bytes]:
        """Let the other way lead from now on. What waited for its twin on it is told."""
        self.lead = lead
        told = [self._tell_record(now) for _ in range(len(self._records))] if lead is Way.STREAM else []
        return told + ([self._tell_message(now) for _ in range(len(self._messages))] if lead is Way.CHANNEL else [])

    def overdue(self, now: float) -> list[bytes]:
        """What has waited for its twin long enough."""
        told = []
        while self._records and now - self._records[0].since >= GRACE_SECONDS:
            told.append(self._tell_record(now))
        while self._messages and now - self._messages[0].since >= GRACE_SECONDS:
            told.append(self._tell_message(now))
        return told

    def forgive(self, way: Way, before: float) -> None:
        """What was told before does not come on this way any more: what equals it there is something new."""
        (self._owed_by_channel if way is Way.CHANNEL else self._owed_by_stream).forget(before)

    def settled(self, to: Way, now: float) -> bool:
        """Whether the other way can be left: nothing waits, and nothing that it has told is still to come on `to`."""
        if self._records or self._messages:
            return False
        owed = self._owed_by_stream if to is Way.STREAM else self._owed_by_channel
        return not owed.any_since(now - GRACE_SECONDS)

    def _up_to(self, key: bytes, now: float) -> list[bytes]:
        """The records that wait, up to the one with this key: the stream's order is everybody's."""
        told = []
        while self._records[0].key != key:
            told.append(self._tell_record(now))
        first = self._records.popleft()
        self._count_down(first.key)
        return [*told, first.frame]

    def _tell_record(self, now: float) -> bytes:
        first = self._records.popleft()
        self._count_down(first.key)
        self._owed_by_channel.add(first.key, now)
        return first.frame

    def _tell_message(self, now: float) -> bytes:
        first = self._messages.popleft()
        self._owed_by_stream.add(first.key, now)
        return first.frame

    def _count_down(self, key: bytes) -> None:
        self._waiting[key] -= 1
        if not self._waiting[key]:
            del self._waiting[key]
