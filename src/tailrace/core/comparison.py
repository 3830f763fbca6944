"""The shadow comparison: is what came on the old channels what came in the streams?

Rules of this file
1. Two messages are the same when stream and content are. Equal ones are counted, not collected: two are two.
2. An event that came on one side waits `PATIENCE_SECONDS` for its twin; then it is missing (channel only) or extra
   (stream only). One whose twin came later than `LATE_SECONDS` is late; late is no mismatch.
3. Bounded: at most `max_waiting` events wait. Over it the oldest are given up and counted as skipped, never as missing.
4. Pure: the clock is the caller's, contents are hashes.
"""

from __future__ import annotations

import base64
import hashlib
from collections import deque
from enum import StrEnum

import msgspec

from tailrace.core.codec import minify
from tailrace.core.names import StreamName
from tailrace.core.rollout import GuardLimits, Readings
from tailrace.errors import Malformed, TooLarge

__all__ = [
    "LATE_SECONDS",
    "LEAST_WINDOW_SECONDS",
    "PATIENCE_SECONDS",
    "WINDOW_SECONDS",
    "Comparison",
    "Counts",
    "Side",
    "content_of",
]

PATIENCE_SECONDS = 3.0
LATE_SECONDS = 1.0
WINDOW_SECONDS = GuardLimits().window_seconds
"""Nothing older is judged, where nobody sets it otherwise; nor, where enough came since, anything older than
`LEAST_WINDOW_SECONDS`."""
LEAST_WINDOW_SECONDS = 3
DOUBT_SECONDS = 10.0
"""An event whose twin may have come before we listened is doubtful, and for so long all that equal it."""
LAG_SECONDS = 10.0
"""The lag is what the last events had."""
LAG_SHARE = 0.95
LEAST_LAGS = 5
"""So many events make a lag; one that was slow does not."""
MAX_LAGS = 5_000
_MAX_BYTES = 8_388_608


class Side(StrEnum):
    """Where an event was seen."""

    CHANNEL = "channel"
    STREAM = "stream"

    @property
    def other(self) -> Side:
        """Where its twin is."""
        return Side.STREAM if self is Side.CHANNEL else Side.CHANNEL


class Counts(msgspec.Struct):
    """What was found."""

    matched: int = 0
    missing: int = 0
    """On the channel only."""
    extra: int = 0
    """In the stream only."""
    late: int = 0
    """Matched, but more than `LATE_SECONDS` apart."""
    skipped: int = 0
    """Not compared: too much waited, or a connection was lost."""

    @property
    def compared(self) -> int:
        """Events that were judged."""
        return self.matched + self.missing + self.extra

    def add(self, other: Counts) -> None:
        """Count the other's, too."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def content_of(stream: StreamName, message: bytes) -> bytes:
    """What a message is compared by: its JSON without insignificant whitespace, whole and byte for byte.

    A message that is no JSON is in the stream as an object with its text, and is compared as that.
    """
    try:
        content: bytes = minify(message, max_bytes=_MAX_BYTES)
    except (Malformed, TooLarge):
        content = msgspec.json.encode(_as_object(message))
    digest = hashlib.blake2b(str(stream).encode(), digest_size=16)
    digest.update(b"\n")
    digest.update(content)
    return digest.digest()


def _as_object(message: bytes) -> dict[str, str]:
    try:
        return {"text": message.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(message).decode()}


class Comparison:
    """See the rules above. Times are seconds of any one clock that only grows."""

    def __init__(
        self,
        *,
        max_waiting: int = 50_000,
        patience_seconds: float = PATIENCE_SECONDS,
        window_seconds: float = WINDOW_SECONDS,
    ) -> None:
        self.total = Counts()
        self._max_waiting = max_waiting
        self._patience = patience_seconds
        self._window_seconds = int(window_seconds)
        self._waiting: dict[Side, dict[bytes, deque[tuple[float, bool]]]] = {side: {} for side in Side}
        self._order: deque[tuple[float, Side, bytes, bool]] = deque()
        self._doubted: dict[bytes, float] = {}
        """Contents of doubtful events, since when."""
        self._since: float | None = None
        self._window: dict[int, Counts] = {}
        """What became of the events that were first seen in a second."""
        self._lags: deque[tuple[float, float]] = deque(maxlen=MAX_LAGS)

    @property
    def waiting(self) -> int:
        """How many events wait for their twins, at most."""
        return len(self._order)

    def saw(self, side: Side, content: bytes, now: float, *, doubtful: bool = False) -> None:
        """An event came on one side. One that is doubtful may match, but is no mismatch and no lag."""
        if self._since is None:
            self._since = now
        doubtful = self._doubts(content, now, doubtful=doubtful or now - self._since < LATE_SECONDS)
        twins = self._waiting[side.other].get(content)
        if twins is None:
            self._waiting[side].setdefault(content, deque()).append((now, doubtful))
            self._order.append((now, side, content, doubtful))
            if len(self._order) > self._max_waiting:
                self._give_up_oldest()
            return
        at, was_doubtful = twins.popleft()
        apart = now - at
        if not twins:
            del self._waiting[side.other][content]
        if not was_doubtful:
            self._lags.append((now, apart if side is Side.STREAM else 0.0))
        self._count(at, Counts(matched=1, late=int(apart > LATE_SECONDS)))

    def restart(self, now: float) -> None:
        """Events may have been lost on the way to us: forget what waits, and count nothing that came before now."""
        forgotten = sum(len(times) for side in Side for times in self._waiting[side].values())
        for side in Side:
            self._waiting[side].clear()
        self._order.clear()
        self._since = now
        self._count(now, Counts(skipped=forgotten))

    def expire(self, now: float) -> Counts:
        """Judge what has waited long enough."""
        found = Counts()
        while self._order and now - self._order[0][0] >= self._patience:
            at, side, content, doubtful = self._order.popleft()
            if not self._take(side, content, at):
                continue
            one = Counts(skipped=1) if doubtful else Counts(missing=1) if side is Side.CHANNEL else Counts(extra=1)
            found.add(one)
            self._count(at, one)
        self._forget(now)
        while self._doubted and now - self._doubted[first := next(iter(self._doubted))] > DOUBT_SECONDS:
            del self._doubted[first]
        return found

    def readings(self, now: float, *, enough: int = 100) -> Readings:
        """What the guards judge: the newest events whose time to be matched is over, until they are `enough`."""
        newest = int(now - self._patience) - 1
        seen = Counts()
        for second in range(newest, newest - self._window_seconds, -1):
            seen.add(self._window.get(second, _NOTHING))
            if newest - second + 1 >= LEAST_WINDOW_SECONDS and seen.compared >= enough:
                break
        return Readings(compared=seen.compared, mismatched=seen.missing + seen.extra, lag_seconds=self._lag(now))

    # -- inside -----------------------------------------------------------------------------------------------------

    def _doubts(self, content: bytes, now: float, *, doubtful: bool) -> bool:
        """Whether an event is doubtful: in itself, or because an equal one was that it may be taken for."""
        first = self._doubted.get(content)
        if first is not None:
            return doubtful or now - first < DOUBT_SECONDS
        if doubtful and len(self._doubted) < self._max_waiting:
            self._doubted[content] = now
        return doubtful

    def _lag(self, now: float) -> float:
        """Nearly all events of the last seconds had no more than this; those that still wait for the stream count."""
        lags = [lag for at, lag in self._lags if now - at < LAG_SECONDS]
        lags += [now - at for times in self._waiting[Side.CHANNEL].values() for at, doubtful in times if not doubtful]
        if len(lags) < LEAST_LAGS:
            return 0.0
        return sorted(lags)[int(LAG_SHARE * (len(lags) - 1))]

    def _take(self, side: Side, content: bytes, at: float) -> bool:
        times = self._waiting[side].get(content)
        if times is None or times[0][0] > at:
            return False  # it found its twin
        times.popleft()
        if not times:
            del self._waiting[side][content]
        return True

    def _give_up_oldest(self) -> None:
        at, side, content, _ = self._order.popleft()
        if self._take(side, content, at):
            self._count(at, Counts(skipped=1))

    def _count(self, at: float, counts: Counts) -> None:
        self.total.add(counts)
        self._window.setdefault(int(at), Counts()).add(counts)

    def _forget(self, now: float) -> None:
        old = [second for second in self._window if now - second > self._window_seconds + 2 * self._patience]
        for second in old:
            del self._window[second]


_NOTHING = Counts()
