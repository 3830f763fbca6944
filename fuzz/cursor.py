"""No matter what text a reader resumes from: a place for each stream that can be written again, or InvalidCursor."""

from __future__ import annotations

from tailrace.core.cursor import CursorToken, format_cursor, parse_cursor, parse_resume
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.errors import InvalidCursor

__all__ = ["check"]

NAMES = [StreamName(f"run:{number}") for number in range(32)]


def check(data: bytes) -> None:
    """The first byte says for how many streams the rest is a cursor."""
    text = data[1:].decode("utf-8", "surrogateescape")
    streams = NAMES[: 1 + data[0] % 32] if data else NAMES[:2]
    try:
        parse_resume(text)
    except InvalidCursor:
        pass
    try:
        places = parse_cursor(text, streams)
    except InvalidCursor:
        return
    assert places.keys() == set(streams)
    known = {stream: place for stream, place in places.items() if isinstance(place, EntryId)}
    if len(known) == len(streams):
        written = format_cursor(known)
        assert parse_cursor(written, streams) == known
        assert len(streams) == 1 or len(written) == len(str(CursorToken(streams)))
