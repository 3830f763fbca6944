"""No matter what is published to a push channel: records with 64-bit ids and labels on a line, or ValueError."""

from __future__ import annotations

from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.eventlog.redis.wire import Place, decode

__all__ = ["check"]

STREAM = StreamName("run:42")


def check(data: bytes) -> None:
    """One message for a place that knows nothing, and once more for one that was just moved by it."""
    place = Place(STREAM)
    for _ in range(2):
        try:
            records = decode(place, data)
        except ValueError:
            return
        if place.last is not None:
            check_id(place.last)
        for record in records:
            check_id(record.id)
            if record.prev is not None:
                check_id(record.prev)
            assert 0 <= record.time < 2**64
            assert not set(record.data) & set(b"\r\n")
            for label in (record.type, record.uid, record.key, record.actor, record.trace):
                assert label is None or (label.isascii() and label.isprintable())


def check_id(id_: EntryId) -> None:
    """It can be written into a cursor and read again."""
    assert EntryId.parse(str(id_)) == id_
