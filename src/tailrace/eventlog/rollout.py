"""What is stored of a rollout: how far each kind has moved, every change, and what the guards saw.

`eventlog/redis/rollout.py` keeps it; the rules are in core/rollout.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias

import msgspec

from tailrace.core.names import StreamName
from tailrace.core.rollout import Health, Readings, Rollout

__all__ = ["CHANGES_KEPT", "CHANGE_STREAM", "Change", "GuardNote", "Look", "PublishReport"]

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
CHANGE_STREAM = StreamName.parse("system:rollout")
"""Every change is an event of this stream."""
CHANGES_KEPT = 1_000
"""Changes that are remembered beside the stream, which forgets by age."""


class Look(msgspec.Struct, frozen=True):
    """What was set at one moment."""

    now: float
    """The clock of Redis, Unix seconds."""
    rollouts: Mapping[str, Rollout]
    version: int = 0
    """Number of the last change."""
    told: int = 0
    """Number of the last change that is surely in the stream."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change: what, who, when."""

    number: int = 0
    action: str
    """set, advance, rollback or finalize."""
    kind: str
    percent: int
    was_percent: int
    finalized: bool
    by: str
    reason: str
    at: float
    """Unix seconds, by the clock of Redis."""
    hold_seconds: float | None = None


class GuardNote(msgspec.Struct, frozen=True, kw_only=True):
    """What the guards said of a kind when they last looked."""

    health: Health
    reasons: tuple[str, ...] = ()
    readings: Readings = Readings()
    at: float = 0.0
    by: str = ""


class PublishReport(msgspec.Struct, frozen=True, kw_only=True):
    """How one process fared with publishing since its last report."""

    kind: str
    published: Count = 0
    """Tries to publish to streams."""
    errors: Count = 0
    fallbacks: Count = 0
    """Times that it went back to Pub/Sub because the log did not answer."""

    def plus(self, other: PublishReport) -> PublishReport:
        """Both together."""
        return PublishReport(
            kind=self.kind,
            published=self.published + other.published,
            errors=self.errors + other.errors,
            fallbacks=self.fallbacks + other.fallbacks,
        )
