"""No matter what JSON an event holds: every frame is one line that the client reads back, byte for byte."""

from __future__ import annotations

import json

from tailrace.client.wire import decode_record
from tailrace.core.codec import check_label, minify
from tailrace.core.event import Record
from tailrace.core.frames import SseForm, WsForm
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName, check_type
from tailrace.core.sse import ServerEvent, SseParser
from tailrace.errors import Malformed, TooLarge

__all__ = ["check"]

STREAM = StreamName("run:42")


def check(data: bytes) -> None:
    """A type, a label and the data, each on its line."""
    type_, _, rest = data.partition(b"\n")
    label, _, body = rest.partition(b"\n")
    try:
        record = Record(
            STREAM,
            EntryId(7, 2),
            EntryId(6, 1),
            check_type(type_.decode("latin-1")),
            minify(body, max_bytes=2_000),
            1,
            key=check_label("key", label.decode("latin-1")) if label else None,
        )
    except (Malformed, TooLarge):
        return
    for named in (True, False):
        (event,) = SseParser().feed(SseForm(named=named).item(record))
        assert isinstance(event, ServerEvent)
        assert (event.event, event.id) == (record.type if named else "message", "7-2")
        assert decode_record(event.data.encode()) == record
    text = WsForm().item(record)
    assert b"\n" not in text
    assert decode_record(text) == record
    plain = WsForm(format="raw").item(record)
    assert b"\n" not in plain
    check_raw(plain, json.loads(record.data))


def check_raw(plain: bytes, published: object) -> None:
    """The application's object with the record's id as its own."""
    expected = published if isinstance(published, dict) else {"data": published}
    pairs: list[tuple[str, object]] = json.loads(plain, object_pairs_hook=list)
    assert [name for name, _ in pairs].count("id") == 1
    assert pairs[0] == ("id", "7-2")
    assert json.loads(plain) == {**expected, "id": "7-2"}
