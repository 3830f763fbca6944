"""No matter what a server sends to the client: a record, a control event, a page, nothing known, or CorruptRecord."""

from __future__ import annotations

from tailrace.client.wire import decode_control, decode_page, decode_record
from tailrace.core.event import Record
from tailrace.errors import CorruptRecord

__all__ = ["check"]


def check(data: bytes) -> None:
    """One message as each of the three."""
    try:
        assert isinstance(decode_record(data), Record)
    except CorruptRecord:
        pass
    try:
        decode_control(data)
    except CorruptRecord:
        pass
    try:
        page = decode_page(data)
    except CorruptRecord:
        return
    assert len(list(page.items())) <= len(page.records) + len(page.gaps)
