"""Moving streams from Pub/Sub to the log: which stream goes which way, and when to go back.

Rules of this file
1. No clock and no store: times are Unix seconds that the caller got from Redis, so all processes mean the same.
2. A stream's place in the order of moving depends on its name alone. It never changes, in any process or version.
3. Writers move before readers, and leave after them. A process hears of a change within `settle_seconds`; for twice
   that long both ways hold every event, so that no reader stands where nobody writes. Until then only a roll-back may
   follow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from tailrace.core.names import StreamName
from tailrace.errors import Conflict, Malformed

__all__ = [
    "FULL",
    "SETTLE_SECONDS",
    "STEPS",
    "GuardLimits",
    "Health",
    "Mode",
    "Readings",
    "Rollout",
    "Verdict",
    "bucket",
    "finalized",
    "judge",
    "mode",
    "moved",
    "next_step",
    "of_kind",
    "reading",
    "rolled_back",
    "writing",
]

FULL = 100
STEPS = (10, 50, FULL)
"""What `--hold` goes through."""
SETTLE_SECONDS = 5.0
"""Within this time every process has heard of a change; they ask every second."""
_BUCKETS = 10_000


class Mode(StrEnum):
    """Where the events of a stream are written."""

    PUBSUB = "pubsub"
    """Only to the old channel: no history, no resuming."""
    DUAL = "dual"
    """To the stream and to the old channel."""
    STREAMS = "streams"
    """Only to the stream."""


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """How far one kind of stream has moved, and who said so."""

    percent: int = 0
    finalized: bool = False
    """The old channels are no longer written."""
    since: float = 0.0
    """When this was set, by the clock of Redis."""
    was_percent: int = 0
    was_finalized: bool = False
    by: str = ""
    reason: str = ""
    hold_seconds: float | None = None
    """Go to the next step after this long, if the guards are green; None: stay."""
    settle_seconds: float = SETTLE_SECONDS

    def is_settled(self, now: float) -> bool:
        """Whether everybody has heard of it, and readers have moved."""
        return now - self.since >= 2 * self.settle_seconds


def bucket(stream: StreamName) -> int:
    """A stream's place in the order of moving, 0 to 9 999."""
    return int.from_bytes(hashlib.blake2b(str(stream).encode(), digest_size=8).digest(), "big") % _BUCKETS


def _is_on(stream: StreamName, percent: int) -> bool:
    return bucket(stream) < percent * (_BUCKETS // FULL)


def mode(*, enabled: bool, has_streams: bool, is_on: bool, is_finalized: bool) -> Mode:
    """The truth table.

    Args:
        enabled: REDIS_STREAM_ENABLED; off wins over everything that is stored.
        has_streams: the server knows Redis Streams.
        is_on: the stream is within the percentage.
        is_finalized: the old channels are given up.
    """
    if not enabled or not has_streams or not is_on:
        return Mode.PUBSUB
    return Mode.STREAMS if is_finalized else Mode.DUAL


def writing(
    rollout: Rollout, stream: StreamName, now: float, *, enabled: bool = True, has_streams: bool = True
) -> Mode:
    """Where a publisher writes this stream's events now."""
    settling = now - rollout.since < rollout.settle_seconds
    leaving = not rollout.is_settled(now) and _is_on(stream, rollout.was_percent)
    return mode(
        enabled=enabled,
        has_streams=has_streams,
        is_on=_is_on(stream, rollout.percent) or leaving,
        is_finalized=rollout.finalized and not settling,
    )


def reading(
    rollout: Rollout, stream: StreamName, now: float, *, enabled: bool = True, has_streams: bool = True
) -> bool:
    """Whether a viewer reads this stream from the log now (else from the old channel)."""
    if not enabled or not has_streams:
        return False
    settling = now - rollout.since < rollout.settle_seconds
    was_on = _is_on(stream, rollout.was_percent)
    if _is_on(stream, rollout.percent):
        return was_on or not settling
    # Back to the old channel: at once, unless its writers have yet to come back to it.
    return was_on and rollout.was_finalized and settling


# -- changes ---------------------------------------------------------------------------------------------------------


def _after(rollout: Rollout, now: float, **changes: object) -> Rollout:
    was_percent, was_finalized = rollout.percent, rollout.finalized
    if not rollout.is_settled(now):
        # A roll-back right after another change: somebody may still go by what was before that.
        was_percent = max(was_percent, rollout.was_percent)
        was_finalized = was_finalized or rollout.was_finalized
    fresh = Rollout(
        since=now, was_percent=was_percent, was_finalized=was_finalized, settle_seconds=rollout.settle_seconds
    )
    return msgspec.structs.replace(fresh, **changes)


def _refuse_unsettled(rollout: Rollout, now: float) -> None:
    if not rollout.is_settled(now):
        wait = 2 * rollout.settle_seconds - (now - rollout.since)
        raise Conflict(
            "the last change has not settled: processes hear of it and readers move", wait_seconds=round(wait, 1)
        )


def moved(
    rollout: Rollout, percent: int, *, now: float, by: str, reason: str = "", hold_seconds: float | None = None
) -> Rollout:
    """The rollout at another percentage.

    Raises:
        Malformed: not 0 to 100.
        Conflict: it is finalized, and only a roll-back leads out of that; or the last change has not settled
            (`wait_seconds`).
    """
    if not 0 <= percent <= FULL:
        raise Malformed("a percentage is 0 to 100")
    if rollout.finalized:
        raise Conflict("the rollout is finalized: old channels are no longer written; roll back first")
    _refuse_unsettled(rollout, now)
    return _after(rollout, now, percent=percent, by=by, reason=reason, hold_seconds=hold_seconds)


def rolled_back(rollout: Rollout, *, now: float, by: str, reason: str = "") -> Rollout:
    """The rollout with all streams back on Pub/Sub. Always possible."""
    return _after(rollout, now, percent=0, by=by, reason=reason)


def finalized(rollout: Rollout, *, now: float, by: str, reason: str = "") -> Rollout:
    """The rollout without the old channels.

    Raises:
        Conflict: not all streams have moved, or the last change has not settled (`wait_seconds`).
    """
    if rollout.finalized:
        return rollout
    if rollout.percent != FULL:
        raise Conflict(f"only {rollout.percent} % have moved; finalize at {FULL} %", percent=rollout.percent)
    _refuse_unsettled(rollout, now)
    return _after(rollout, now, percent=FULL, finalized=True, by=by, reason=reason)


def next_step(rollout: Rollout, health: Health, now: float) -> int | None:
    """The percentage that a holding rollout goes to now; None: it stays."""
    if rollout.hold_seconds is None or health is not Health.GREEN or now - rollout.since < rollout.hold_seconds:
        return None
    return next((step for step in STEPS if step > rollout.percent), None)


# -- guards ----------------------------------------------------------------------------------------------------------


class Health(StrEnum):
    """What the guards say."""

    GREEN = "green"
    RED = "red"
    UNKNOWN = "unknown"
    """Too little was seen to say; nothing goes forward, nothing goes back."""


class GuardLimits(msgspec.Struct, frozen=True, kw_only=True):
    """From where on the guards roll back. A rate over a few events says nothing, so there are least numbers."""

    mismatch: float = 0.01
    publish_errors: float = 0.05
    lag_seconds: float = 2.0
    window_seconds: float = 60.0
    """Nothing older is judged."""
    least_compared: int = 100
    least_published: int = 100


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen in the guards' window."""

    compared: int = 0
    """Events of which at least one side came."""
    mismatched: int = 0
    """Events that came on one side only."""
    published: int = 0
    """Tries to publish."""
    publish_errors: int = 0
    lag_seconds: float = 0.0
    """How far the stream is behind the old channel."""


class Verdict(msgspec.Struct, frozen=True):
    """The guards' decision, and every reason for it."""

    health: Health
    reasons: tuple[str, ...] = ()

    @property
    def roll_back(self) -> bool:
        """Whether to go back to Pub/Sub."""
        return self.health is Health.RED


def judge(readings: Readings, limits: GuardLimits | None = None) -> Verdict:
    """Decide whether what was seen is bad enough to roll back. A value at its limit is."""
    limits = limits if limits is not None else GuardLimits()
    reasons = []
    enough_compared = readings.compared >= limits.least_compared
    enough_published = readings.published >= limits.least_published
    if enough_compared and readings.mismatched >= limits.mismatch * readings.compared:
        reasons.append(f"{readings.mismatched} of {readings.compared} events differ")
    if enough_published and readings.publish_errors >= limits.publish_errors * readings.published:
        reasons.append(f"{readings.publish_errors} of {readings.published} publishes failed")
    if readings.lag_seconds >= limits.lag_seconds:
        reasons.append(f"the stream is {readings.lag_seconds:.1f} s behind")
    if reasons:
        return Verdict(Health.RED, tuple(reasons))
    return Verdict(Health.GREEN if enough_compared else Health.UNKNOWN)


def of_kind(rollouts: Mapping[str, Rollout], stream: StreamName) -> Rollout:
    """The rollout of a stream's kind; a kind that nobody moved is at 0 %."""
    return rollouts.get(stream.kind, _AT_REST)


_AT_REST = Rollout()
