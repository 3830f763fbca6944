"""What code that produces a run needs of the world: on the database and log of its own process, or over a gateway.

The life of a run as its producer sees it
1. `create` (by whoever wants it done), then `begin`: the producer has an epoch and a lease.
2. `renew` about twice a second for all runs of the process in one call. The answer tells who was asked to stop.
   Without it the run ends as `lost` when the lease is over.
3. Events are appended with the epoch: `append(…, owner_epoch=epoch)`, over HTTP `POST /runs/{id}/events?epoch=`.
4. `finish`. Where events still wait for the log, `finish(…, seal=False)` at once, go on renewing and appending, then
   `finish` again in the same way with `seal=True`. If that never comes, the seal is put on when the lease and
   `hold_seconds` are over, behind an event that says that some may be missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from tailrace.features.runs.model import Run, RunStatus

__all__ = ["Claim", "LeaseState", "RunBackend"]


class Claim(msgspec.Struct, frozen=True):
    """A run that is now the caller's."""

    run: Run
    epoch: int
    lease_seconds: float
    """Renew well before this is over."""


class LeaseState(msgspec.Struct, frozen=True):
    """What a renewal learnt about one run."""

    cancel: bool = False
    """Somebody asked for its end: stop, then finish it as cancelled."""
    fenced: bool = False
    """It is no longer the caller's: another producer has it, or it ended without the caller. Stop; append nothing."""


class RunBackend(Protocol):
    """Where runs are kept. Each call has a deadline.

    All may raise `DatabaseUnavailable` or `LogUnavailable` (retryable; over HTTP also for a gateway that is away),
    and `RunNotFound`.
    """

    async def create(
        self,
        *,
        kind: str = "run",
        title: str = "",
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> Run:
        """Make a queued run.

        Args:
            kind: what sort of work it is; decides how long its events stay.
            title: for people.
            owner: who may see it; over HTTP the token's `sub` unless the token is an admin's.
            metadata: a small JSON object.
            run_id: its id. With an id the call may be repeated: the same run again is the same as once.

        Raises:
            Malformed, TooLarge: what cannot be stored. Conflict: another run has this id.
        """

    async def begin(self, run_id: str, *, producer: str) -> Claim:
        """Claim a run, whose status is then `running`.

        Args:
            run_id: which.
            producer: a random name of this claim, 1-64 characters; the same one again gets the same claim again.

        Raises:
            RunEnded: there is nothing to do. Conflict: another producer has it and lives.
        """

    async def renew(self, held: Sequence[tuple[str, int]], *, hold_seconds: float = 0.0) -> Mapping[str, LeaseState]:
        """Keep the leases of (run id, epoch), and learn what is wanted of them. Unknown runs are fenced.

        Args:
            held: whose.
            hold_seconds: keep them for so long, where that is longer: their ends are on a disk, and nobody could be
                told. Whoever delivers what is there tells them.

        Raises:
            LogUnavailable, DatabaseUnavailable: nothing is known. Go on working: an outage ends no run.
        """

    async def finish(
        self,
        run_id: str,
        epoch: int | None,
        status: RunStatus,
        *,
        error: str | None = None,
        result: Any = None,
        seal: bool = True,
        hold_seconds: float = 0.0,
    ) -> Run:
        """End a run: its status at once, and with `seal` its terminal event behind all others and the stream's close.

        Ending it again in the same way is the same as once. Where the log is away the run is sealed later by itself.

        Args:
            run_id: which.
            epoch: the claim's; None ends it whoever has it.
            status: completed, failed or cancelled.
            error: for people.
            result: a small JSON value, or a reference.
            seal: False while the caller still has events to append; it goes on renewing, then calls again.
            hold_seconds: with `seal=False`: they are on a disk, so wait for them for so long even if the caller dies.

        Raises:
            Fenced: another producer has it, or it was lost. RunEnded: it ended in another way.
        """

    async def get(self, run_id: str) -> Run:
        """A run as it is now."""

    async def aclose(self) -> None:
        """Give back what the backend opened itself."""
