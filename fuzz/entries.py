"""No matter what fields an entry in Redis has: one record with safe lines; JSON if it is foreign."""

from __future__ import annotations

import json

from tailrace.core.event import Record
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName, foreign_type
from tailrace.eventlog.redis.fields import read_entries

__all__ = ["check"]

STREAM = StreamName("run:42")


def check(data: bytes) -> None:
    """Fields parted by NUL, of two entries; Redis itself made their ids."""
    fields = data.split(b"\0")
    for record in read_entries(STREAM, [[b"5-1", fields], [b"5-2", fields]]):
        check_record(record)


def check_record(record: Record) -> None:
    """It can be given to every reader."""
    assert record.prev is None or EntryId.parse(str(record.prev)) == record.prev
    assert 0 <= record.time < 2**64
    assert not set(record.data) & set(b"\r\n")
    for label in (record.type, record.uid, record.key, record.actor, record.trace):
        assert label is None or not set(label) & set("\r\n")
    if record.foreign:
        assert foreign_type(record.type) == record.type
        json.loads(record.data)
