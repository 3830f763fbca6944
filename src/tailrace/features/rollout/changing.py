"""Changing a rollout: the steps of `tailrace rollout` and of the guards. Every change is also an event.

The state remembers a change in the same step that makes it; the event follows. Whoever is cut off in between leaves it
to the leading gateway, which tells what is not told yet: the uid makes it one event.
"""

from __future__ import annotations

import getpass
import os
import socket

import msgspec

from tailrace.core.event import Event
from tailrace.core.rollout import Rollout, finalized, moved, rolled_back
from tailrace.errors import ConfigError
from tailrace.eventlog.base import Log
from tailrace.eventlog.redis.rollout import RedisRollout
from tailrace.eventlog.rollout import CHANGE_STREAM, Change

__all__ = ["finalize", "roll_back", "set_percent", "tell_changes", "who"]


def who() -> str:
    """The person at this machine: `ann@host`."""
    try:
        name = os.environ.get("SUDO_USER") or getpass.getuser()
    except (OSError, KeyError):
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


async def set_percent(
    store: RedisRollout,
    kind: str,
    percent: int,
    *,
    by: str,
    reason: str = "",
    hold_seconds: float | None = None,
    settle_seconds: float | None = None,
    action: str = "set",
) -> Change | None:
    """Move so many per cent of a kind's streams. None: that is so already.

    Raises:
        ConfigError: the server has no streams.
        Conflict: as `core.rollout.moved`.
    """
    if percent and not await store.has_streams():
        raise ConfigError("this Redis has no Streams (it is older than 5.0): everything stays on Pub/Sub")

    def decide(before: Rollout, now: float) -> Rollout:
        if (before.percent, before.finalized, before.hold_seconds) == (percent, False, hold_seconds):
            return before
        if settle_seconds is not None:
            before = msgspec.structs.replace(before, settle_seconds=settle_seconds)
        return moved(before, percent, now=now, by=by, reason=reason, hold_seconds=hold_seconds)

    return await store.change(action, kind, decide)


async def roll_back(store: RedisRollout, kind: str, *, by: str, reason: str = "") -> Change | None:
    """Bring all streams of a kind back to Pub/Sub. None: they are there."""

    def decide(before: Rollout, now: float) -> Rollout:
        if before.percent == 0:
            return before
        return rolled_back(before, now=now, by=by, reason=reason)

    return await store.change("rollback", kind, decide)


async def finalize(store: RedisRollout, kind: str, *, by: str, reason: str = "") -> Change | None:
    """End the old channels of a kind. None: they are ended.

    Raises:
        Conflict: as `core.rollout.finalized`.
    """

    def decide(before: Rollout, now: float) -> Rollout:
        return finalized(before, now=now, by=by, reason=reason)

    return await store.change("finalize", kind, decide)


async def tell_changes(store: RedisRollout, event_log: Log) -> int:
    """Append the changes that are not surely in `system:rollout`; the number of events.

    Raises:
        LogError: not now; it can be done later, by anyone.
    """
    look = await store.look()
    changes = await store.changes(look.told) if look.told < look.version else []
    for change in changes:
        event = Event("rollout.changed", msgspec.to_builtins(change), f"change-{change.number}")
        await event_log.append(CHANGE_STREAM, [event])
    if changes:
        await store.tell(changes[-1].number)
    return len(changes)
