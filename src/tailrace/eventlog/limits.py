"""Limits that every log keeps."""

from __future__ import annotations

from collections.abc import Sequence

from tailrace.core.codec import Prepared, prepare
from tailrace.core.event import Event
from tailrace.core.kinds import StreamKind
from tailrace.errors import Malformed, TooLarge

__all__ = [
    "ENTRY_OVERHEAD",
    "MAX_CALL_BYTES",
    "MAX_CALL_EVENTS",
    "MAX_UIDS",
    "PAGE_BYTES",
    "TOMBSTONE_SECONDS",
    "body_of",
    "prepare_call",
    "size_of",
]

MAX_CALL_EVENTS = 1_000
MAX_CALL_BYTES = 8 * 1_048_576
ENTRY_OVERHEAD = 64
"""What an entry takes besides its texts, about."""
MAX_UIDS = 1_024
PAGE_BYTES = 256 * 1_024
"""A page ends with the entry that crosses this."""
TOMBSTONE_SECONDS = 7 * 86_400.0
"""How long it is remembered where a stream ended, after its entries are gone."""


def prepare_call(events: Sequence[Event], kind: StreamKind, *, close: bool) -> list[Prepared]:
    """Check the events of one append.

    Raises:
        Malformed, TooLarge: they may not be stored.
    """
    if len(events) > MAX_CALL_EVENTS:
        raise TooLarge(f"more than {MAX_CALL_EVENTS} events", limit=MAX_CALL_EVENTS)
    if not events and not close:
        raise Malformed("there is no event to append")
    limit = kind.max_event_bytes
    prepared = [prepare(event, max_bytes=limit) for event in events]
    if len(prepared) > 1 and sum(len(event.data) for event in prepared) > MAX_CALL_BYTES:
        raise TooLarge(f"the events of one call are more than {MAX_CALL_BYTES} bytes", limit=MAX_CALL_BYTES)
    return prepared


def size_of(event: Prepared) -> int:
    """What an event counts, in bytes."""
    labels = (event.type, event.uid, event.key, event.actor, event.trace)
    return len(event.data) + sum(len(text) for text in labels if text is not None) + ENTRY_OVERHEAD


def body_of(event: Prepared) -> bytes:
    """What must be equal when a uid comes again; the trace may differ between two tries of one event."""
    return b"\n".join((event.type.encode(), event.data, (event.key or "").encode(), (event.actor or "").encode()))
