"""What a run is and how it may change. Pure: no clock, no database.

Rules of this file
1. queued → running → completed | failed | cancelled | lost. A run that was never claimed may end from queued, but not
   as lost: there is nobody to lose.
2. An ended run never changes again; ending it twice in the same way is the same as once.
3. The producer that claimed last owns the run: its epoch is the largest, and every smaller one is fenced out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import msgspec

from tailrace.core.names import StreamName
from tailrace.errors import Malformed

__all__ = [
    "ENDINGS",
    "END_UID",
    "MAX_ERROR",
    "MAX_OWNER",
    "MAX_TITLE",
    "TRANSITIONS",
    "Run",
    "RunStatus",
    "check_kind",
    "check_run_id",
    "run_stream",
]

END_UID = "end"
"""uid of the terminal event: whoever seals a run, it is stored once."""
MAX_OWNER = 255
MAX_TITLE = 500
MAX_ERROR = 10_000
_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~@-]{0,199}", re.ASCII)


class RunStatus(StrEnum):
    """Where a run is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"
    """Its producer died or went silent for longer than its lease."""

    @property
    def ended(self) -> bool:
        """Whether nothing can change any more."""
        return self in ENDINGS


ENDINGS = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.LOST})

TRANSITIONS: Mapping[RunStatus, frozenset[RunStatus]] = MappingProxyType(
    {
        RunStatus.QUEUED: frozenset({RunStatus.RUNNING, *(ENDINGS - {RunStatus.LOST})}),
        # To itself: another producer takes over.
        RunStatus.RUNNING: frozenset({RunStatus.RUNNING, *ENDINGS}),
        **{ending: frozenset[RunStatus]() for ending in ENDINGS},
    }
)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run as SQL has it. Times are Unix milliseconds."""

    id: str
    owner: str
    """Who may see and end it: a token's `sub`."""
    kind: str
    title: str = ""
    status: RunStatus = RunStatus.QUEUED
    created_at: int
    started_at: int | None = None
    ended_at: int | None = None
    error: str | None = None
    result: Any = None
    """A small JSON value, or a reference to where the large one is."""
    metadata: dict[str, Any] = {}
    owner_epoch: int = 0
    """How often it was claimed; the last producer's epoch."""
    cancel_requested_at: int | None = None
    sealed: bool = False
    """Whether the log has its terminal event."""

    @property
    def stream(self) -> StreamName:
        """Where its events are."""
        return run_stream(self.id)


def run_stream(run_id: str) -> StreamName:
    """The stream of a run. Raises: Malformed."""
    return StreamName.parse(f"run:{check_run_id(run_id)}")


def check_run_id(text: str) -> str:
    """Check a run's id and return it. Raises: Malformed."""
    if _ID.fullmatch(text) is None:
        raise Malformed("a run's id is 1-200 letters, digits and . _ ~ @ -", field="id")
    return text


def check_kind(text: str) -> str:
    """Check a kind of run and return it. Raises: Malformed."""
    if _KIND.fullmatch(text) is None:
        raise Malformed("a kind of run is 1-64 letters, digits and . _ -", field="kind")
    return text
