"""Which of several bridges writes: a lease in Redis, and an epoch by which who lost it is fenced out of the streams.

<prefix>bridge:{<hash of the pattern>}   hash: owner, until, epoch, seen
"""

from __future__ import annotations

import hashlib
import secrets

import msgspec

from tailrace.eventlog.redis.calls import Calls, load_script
from tailrace.eventlog.redis.topology import Topology

__all__ = ["Leadership", "Turn"]

_LEAD = load_script("bridge", "lead")


class Turn(msgspec.Struct, frozen=True):
    """What the lease says."""

    leads: bool
    epoch: int
    taken: bool
    """It changed hands just now."""
    silent_seconds: float
    """Since when it is not known that the leader (before) stored what was heard."""


class Leadership:
    """The lease of one pattern, as one process sees it."""

    def __init__(self, topology: Topology, pattern: str, *, prefix: str) -> None:
        self.name = secrets.token_hex(8)
        self._calls = Calls(topology, name="tailrace-bridge", what="the lease of bridges")
        self._key = f"{prefix}bridge:{{{hashlib.sha256(pattern.encode()).hexdigest()[:16]}}}"

    async def lead(self, seconds: float, *, waiting_seconds: float = 0.0) -> Turn:
        """Lead if nobody else does, or go on leading, for `seconds`.

        Args:
            seconds: for how long.
            waiting_seconds: how long the oldest message waits that was heard and is not stored.

        Raises:
            LogUnavailable: no answer in time.
        """
        argv = (self.name, round(seconds * 1000), round(waiting_seconds * 1000))
        leads, epoch, taken, silent = await self._calls.script(_LEAD, (self._key,), argv)
        return Turn(leads == 1, int(epoch), taken == 1, silent / 1000)

    async def leave(self) -> None:
        """Let another lead at once.

        Raises:
            LogUnavailable: no answer in time; the lease ends by itself.
        """
        await self._calls.script(_LEAD, (self._key,), (self.name, 0, 0))

    async def aclose(self) -> None:
        """Give the connections back."""
        await self._calls.aclose()
