"""Leases of runs: which producers live, which are wanted to stop, and which have lost their run.

Rules of this file
1. A lease that ran out stays known until somebody has dealt with it. A run without any lease is not lost: the store may
   have lost its memory, so `watch` gives it a whole lease first.
2. The larger epoch owns a run; renewing with a smaller one is answered `FENCED`, and so is an ended run. What somebody
   says of an epoch is no claim: only who asked SQL takes a lease with one that is news here (`renew`).
3. Every key ends by itself a day after the last word about any run. SQL has the truth; here is only who lives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Protocol

__all__ = ["KEEP_SECONDS", "Held", "MemoryRunLeases", "Renewal", "RunLeases"]

KEEP_SECONDS = 86_400.0
"""How long an end or a wish to cancel is remembered."""
Held = tuple[str, int]
"""A run's id and the epoch of the claim on it."""


class Renewal(IntEnum):
    """The answer to a renewal."""

    KEPT = 0
    CANCEL = 1
    """Kept, and somebody wants the run to end."""
    FENCED = 2
    """Not kept: the run has another owner, or has ended."""
    NEWS = 3
    """Not kept: nobody took a lease with this epoch, or it was forgotten."""


class RunLeases(Protocol):
    """Shared by all processes that produce or watch runs. All calls may raise `LogUnavailable` and may be repeated."""

    async def renew(self, held: Sequence[Held], seconds: float) -> list[Renewal]:
        """Keep the leases, or take them with an epoch that is larger than before."""

    async def keep(self, held: Sequence[Held], seconds: float) -> list[Renewal]:
        """Keep the leases that were taken with these epochs; others are `NEWS`."""

    async def cancel(self, run_id: str) -> None:
        """Tell the run's producer at its next renewal."""

    async def end(self, run_id: str) -> None:
        """Forget the lease; whoever renews it from now on is fenced."""

    async def watch(self, held: Sequence[Held], seconds: float) -> None:
        """Begin a lease for those runs that have none."""

    async def expired(self, limit: int) -> list[Held]:
        """Runs whose lease ran out, the oldest first."""

    async def alive(self, run_ids: Sequence[str]) -> list[bool]:
        """Whether a lease on each run lives now."""


class MemoryRunLeases:
    """The leases of one process, for tests and for a log in memory; the same promises as in Redis."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}
        self._epochs: dict[str, int] = {}
        self._cancels: dict[str, float] = {}
        self._ended: dict[str, float] = {}

    async def renew(self, held: Sequence[Held], seconds: float) -> list[Renewal]:
        """See `RunLeases`."""
        return [self._renew(run_id, epoch, seconds) for run_id, epoch in held]

    async def keep(self, held: Sequence[Held], seconds: float) -> list[Renewal]:
        """See `RunLeases`."""
        return [
            Renewal.NEWS
            if run_id not in self._ended and self._epochs.get(run_id, epoch - 1) < epoch
            else self._renew(run_id, epoch, seconds)
            for run_id, epoch in held
        ]

    def _renew(self, run_id: str, epoch: int, seconds: float) -> Renewal:
        now = self._clock()
        if run_id in self._ended or self._epochs.get(run_id, epoch) > epoch:
            return Renewal.FENCED
        self._until[run_id] = now + seconds
        self._epochs[run_id] = epoch
        return Renewal.CANCEL if run_id in self._cancels else Renewal.KEPT

    async def cancel(self, run_id: str) -> None:
        """See `RunLeases`."""
        self._forget(self._cancels)
        self._cancels[run_id] = self._clock() + KEEP_SECONDS

    async def end(self, run_id: str) -> None:
        """See `RunLeases`."""
        self._forget(self._ended)
        self._ended[run_id] = self._clock() + KEEP_SECONDS
        for each in (self._until, self._epochs, self._cancels):
            each.pop(run_id, None)

    async def watch(self, held: Sequence[Held], seconds: float) -> None:
        """See `RunLeases`."""
        for run_id, epoch in held:
            if run_id not in self._until and run_id not in self._ended:
                self._until[run_id] = self._clock() + seconds
                self._epochs[run_id] = max(epoch, self._epochs.get(run_id, epoch))

    async def expired(self, limit: int) -> list[Held]:
        """See `RunLeases`."""
        now = self._clock()
        over = sorted((until, run_id) for run_id, until in self._until.items() if until <= now)
        return [(run_id, self._epochs[run_id]) for _, run_id in over[:limit]]

    async def alive(self, run_ids: Sequence[str]) -> list[bool]:
        """See `RunLeases`."""
        now = self._clock()
        return [self._until.get(run_id, 0.0) > now for run_id in run_ids]

    def _forget(self, entries: dict[str, float]) -> None:
        now = self._clock()
        for run_id in [run_id for run_id, until in entries.items() if until <= now]:
            del entries[run_id]
