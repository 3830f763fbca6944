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

from tailrace.core.codec import minify
from tailrace.core.event import SKIPPED, Event
from tailrace.core.names import StreamName
from tailrace.errors import Conflict, Fenced, Malformed, RunEnded, TooLarge

__all__ = [
    "ENDINGS",
    "END_UID",
    "MAX_ERROR",
    "MAX_METADATA_BYTES",
    "MAX_OWNER",
    "MAX_RESULT_BYTES",
    "MAX_TITLE",
    "MISSING_UID",
    "TRANSITIONS",
    "Run",
    "RunStatus",
    "check_kind",
    "check_metadata",
    "check_result",
    "check_run_id",
    "ends_anew",
    "last_events",
    "run_stream",
]

END_UID = "end"
"""uid of the terminal event: whoever seals a run, it is stored once."""
MISSING_UID = "end-missing"
"""uid of the event before it, where a producer was gone before it had delivered everything."""
MAX_OWNER = 255
MAX_TITLE = 500
MAX_ERROR = 10_000
MAX_RESULT_BYTES = 65_536
MAX_METADATA_BYTES = 16_384
MAX_JSON_DEPTH = 30
"""Of results and metadata: MariaDB takes JSON up to 32 levels."""
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
    flush_until: int | None = None
    """Its producer ended it while events were on their way, which are waited for until then. None: all are there."""

    @property
    def stream(self) -> StreamName:
        """Where its events are."""
        return run_stream(self.id)


def ends_anew(run: Run, epoch: int | None, status: RunStatus, error: str | None, result: Any) -> bool:
    """Whether an ending by the holder of an epoch (None: by anybody) changes a run. False: it has ended in this way.

    Raises:
        Fenced: another producer has it, or it was lost. RunEnded: it ended in another way.
        Conflict: it cannot end so from where it is.
    """
    if run.status.ended:
        if (run.status, run.error, run.result) == (status, error, result):
            return False
        if run.status is RunStatus.LOST and epoch is not None and epoch < run.owner_epoch:
            raise Fenced("the run was lost: its lease was over", run_status=run.status.value)
        raise RunEnded(f"the run has ended: {run.status}", run_status=run.status.value)
    if epoch is not None and epoch != run.owner_epoch:
        raise Fenced("another producer has this run", epoch=run.owner_epoch)
    if status not in TRANSITIONS[run.status]:
        raise Conflict(f"a run that is {run.status} cannot end as {status}", run_status=run.status.value)
    return True


def last_events(run: Run) -> list[Event]:
    """What ends the stream of an ended run: its terminal event, and before it what may be missing."""
    data = {
        "run": run.id,
        "status": run.status.value,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "error": run.error,
        "result": run.result,
    }
    events = [Event(f"run.{run.status.value}", data, uid=END_UID)]
    if run.flush_until is not None:
        # Its producer never said that all was delivered.
        events.insert(0, Event(SKIPPED, {"count": None, "reason": "its producer is gone"}, uid=MISSING_UID))
    return events


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


def check_metadata(value: Mapping[str, Any]) -> dict[str, Any]:
    """Check a run's metadata and return it as it will be read. Raises: Malformed, TooLarge."""
    checked: dict[str, Any] = _check_json(dict(value), "metadata", MAX_METADATA_BYTES)
    return checked


def check_result(value: Any) -> Any:
    """Check a run's result and return it as it will be read. Raises: Malformed, TooLarge."""
    return _check_json(value, "result", MAX_RESULT_BYTES)


def _check_json(value: Any, name: str, limit: int) -> Any:
    try:
        text = msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError) as exc:
        raise Malformed(f"the {name} is no JSON: {exc}", field=name) from None
    try:
        return msgspec.json.decode(minify(text, max_bytes=limit, max_depth=MAX_JSON_DEPTH))
    except TooLarge:
        advice = "keep it elsewhere and put a reference here"
        raise TooLarge(f"the {name} is larger than {limit} bytes: {advice}", limit=limit) from None
    except Malformed as exc:
        raise Malformed(f"the {name} cannot be kept: {exc.detail}", field=name) from None
