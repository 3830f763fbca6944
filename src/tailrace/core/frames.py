"""What readers get on the wire: records around their stored data, and the control events (PROTOCOL.md §6, §7).

Rules of this file
1. Stored data is never decoded nor encoded again; frames are built around its bytes.
2. A frame carries nothing of one reader, so that all readers of one form share it. What differs (the `id:` line of a
   sink on several streams) stands before the frame.
3. Every control payload has `control`, which no envelope has; on SSE its event name is `stream.<control>`.
4. CR, LF and NUL cannot get into a line: ids and checked types hold none, JSON escapes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import msgspec

from tailrace.codes import CloseCode
from tailrace.core.cursor import format_cursor
from tailrace.core.event import Degraded, Ended, Gap, Item, Json, Record, StreamState
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName, foreign_type

__all__ = [
    "HEARTBEAT",
    "PROTOCOL_VERSION",
    "Format",
    "SseForm",
    "WsForm",
    "closed_payload",
    "control_payload",
    "degraded_payload",
    "envelope",
    "gap_payload",
    "mode_payload",
    "open_payload",
    "position_of",
    "raw",
    "refused_payload",
    "retry",
    "sse_closed",
    "sse_item",
    "sse_open",
    "sse_refused",
]

PROTOCOL_VERSION = 1

HEARTBEAT = b":\n"
"""A comment line without a blank one after it: some clients take the blank line for the end of an empty event."""

Format: TypeAlias = Literal["envelope", "raw"]


class SseForm(msgspec.Struct, frozen=True):
    """Server-Sent Events (PROTOCOL.md §6)."""

    format: str = "envelope"
    named: bool = True
    """Whether records carry `event:`. Control events always do, so that `onmessage` is given records only."""
    with_id: bool = True
    """False: the sink puts its own `id:` line before each record and gap."""

    def item(self, item: Item) -> bytes:
        """One event, blank line included."""
        if not isinstance(item, Record):
            return sse_item(item, with_id=self.with_id)
        data = raw(item) if self.format == "raw" else envelope(item)
        line = b"id: %b\n" % str(item.id).encode() if self.with_id else b""
        name = _event_line(item.type) if self.named else b""
        return b"%b%bdata: %b\n\n" % (line, name, data)

    def join(self, frames: Sequence[bytes]) -> bytes:
        """The events one after the other."""
        return b"".join(frames)


class WsForm(msgspec.Struct, frozen=True):
    """One JSON text per item (PROTOCOL.md §7)."""

    format: str = "envelope"

    def item(self, item: Item) -> bytes:
        """The text of one message."""
        if not isinstance(item, Record):
            return control_payload(item)
        return raw(item) if self.format == "raw" else envelope(item)

    def join(self, frames: Sequence[bytes]) -> bytes:
        """The texts as lines; no text holds a line feed."""
        return b"\n".join(frames)


# -- records -----------------------------------------------------------------------------------------------


def envelope(record: Record) -> bytes:
    """The record as JSON, its data byte for byte as stored."""
    prev = b'"%b"' % str(record.prev).encode() if record.prev is not None else b'null,"foreign":true'
    return b'{"id":"%b","prev":%b,"stream":"%b","type":%b,"time":%d,"data":%b%b}' % (
        str(record.id).encode(),
        prev,
        record.stream.encode(),
        _text(record.type),
        record.time,
        record.data,
        _labels(record),
    )


def raw(record: Record) -> bytes:
    """The application's object as it was published, with the record's id as its first member `id`.

    A member `id` of its own is replaced; what is not an object becomes the member `data`.
    """
    id_ = str(record.id).encode()
    data: bytes = record.data
    if not data.startswith(b"{"):
        return b'{"id":"%b","data":%b}' % (id_, data)
    if b'"id":' in data or b"\\u" in data:
        data = _without_id(data)
    if len(data) == 2:
        return b'{"id":"%b"}' % id_
    return b'{"id":"%b",%b' % (id_, data[1:])


def position_of(item: Item) -> EntryId | None:
    """Where a reader is after it was given `item`; None: where it was before."""
    if isinstance(item, Record):
        return item.id
    return item.cursor if isinstance(item, Gap) else None


def _labels(record: Record) -> bytes:
    if record.uid is None and record.key is None and record.actor is None and record.trace is None:
        return b""
    labels = (("uid", record.uid), ("key", record.key), ("actor", record.actor), ("trace", record.trace))
    return b"".join(
        b',"%b":%b' % (name.encode(), msgspec.json.encode(text)) for name, text in labels if text is not None
    )


_TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[][{},]', re.DOTALL)


def _without_id(data: bytes) -> bytes:
    """A minified object without its top-level members `id`, otherwise byte for byte."""
    kept: list[bytes] = []
    depth, begin, key = 0, 1, b""
    for token in _TOKENS.finditer(data):
        text = token[0]
        if text in (b"[", b"{"):
            depth += 1
        elif depth == 1 and text in (b",", b"}"):
            if begin < token.start() and msgspec.json.decode(key) != "id":
                kept.append(data[begin : token.start()])
            begin, key = token.end(), b""
        elif depth == 1 and not key:
            key = text
        if text in (b"]", b"}"):
            depth -= 1
    return b"{%b}" % b",".join(kept)


@lru_cache(maxsize=4_096)
def _text(text: str) -> bytes:
    return msgspec.json.encode(text)


@lru_cache(maxsize=4_096)
def _event_line(type_: str) -> bytes:
    # Checked again here: whoever can write to Redis must not be able to write lines or control events to a browser.
    return b"event: %b\n" % foreign_type(type_).encode()


# -- control events ----------------------------------------------------------------------------------------


def control_payload(item: Gap | Ended | Degraded) -> bytes:
    """The JSON of an item that is not a record."""
    if isinstance(item, Gap):
        return gap_payload(item)
    if isinstance(item, Ended):
        code = CloseCode.ENDED if item.state is StreamState.CLOSED else CloseCode.EXPIRED
        return _json(
            {"control": "closed", "stream": item.stream, "at": str(item.at), "state": item.state.value, **_why(code)}
        )
    return degraded_payload(item)


def open_payload(cursors: Mapping[StreamName, EntryId], heads: Mapping[StreamName, EntryId], **more: Any) -> bytes:
    """The first thing on every connection: where the reader is in each stream, and where each stream ends now."""
    streams = {
        stream: {"cursor": str(cursor), "head": str(heads[stream]) if stream in heads else None}
        for stream, cursor in cursors.items()
    }
    return _json({"control": "open", "protocol": PROTOCOL_VERSION, "streams": streams, **more})


def mode_payload(stream: StreamName, mode: str, *, resumable: bool, reason: str, cursor: EntryId | None) -> bytes:
    """From here on the reader is given its messages in another way (PROTOCOL.md §7.7)."""
    at = {} if cursor is None else {"cursor": str(cursor)}
    return _json({"control": "mode", "stream": stream, "mode": mode, "resumable": resumable, "reason": reason, **at})


def gap_payload(gap: Gap) -> bytes:
    """An announced loss."""
    return _json(
        {
            "control": "gap",
            "stream": gap.stream,
            "after": str(gap.after),
            "before": str(gap.before) if gap.before is not None else None,
            "missed": gap.missed,
            "reason": gap.reason.value,
            "cursor": str(gap.cursor),
        }
    )


def degraded_payload(degraded: Degraded) -> bytes:
    """The log stopped or started again to answer."""
    payload: dict[str, Any] = {"control": "degraded", "active": degraded.active}
    if degraded.active:
        payload["retry_after"] = degraded.retry_after
    return _json(payload)


def refused_payload(code: CloseCode, *, retry_after: float | None = None, detail: str = "") -> bytes:
    """The reading did not begin."""
    return _json({"control": "refused", **_why(code, retry_after, detail)})


def closed_payload(code: CloseCode, *, retry_after: float | None = None, detail: str = "") -> bytes:
    """The server is about to end the connection."""
    return _json({"control": "closed", **_why(code, retry_after, detail)})


def sse_item(item: Gap | Ended | Degraded, *, with_id: bool = True) -> bytes:
    """A control event in the middle of a connection; a gap moves the reader's cursor, so it carries an id."""
    if isinstance(item, Gap):
        return _sse("gap", gap_payload(item), str(item.cursor) if with_id else None)
    return _sse("closed" if isinstance(item, Ended) else "degraded", control_payload(item))


def sse_open(cursors: Mapping[StreamName, EntryId], heads: Mapping[StreamName, EntryId]) -> bytes:
    """`stream.open`, with the cursor as its id: a reader that is cut off before its first record comes back here."""
    return _sse("open", open_payload(cursors, heads), format_cursor(cursors))


def sse_refused(code: CloseCode, *, retry_after: float | None = None, detail: str = "") -> bytes:
    """`stream.refused`, for a reader that would not come back after an error status."""
    return _sse("refused", refused_payload(code, retry_after=retry_after, detail=detail))


def sse_closed(code: CloseCode, *, retry_after: float | None = None, detail: str = "") -> bytes:
    """`stream.closed` of the whole connection."""
    return _sse("closed", closed_payload(code, retry_after=retry_after, detail=detail))


def retry(seconds: float) -> bytes:
    """Tell an EventSource how long to wait before it comes back: one line, in front of an event."""
    return b"retry: %d\n" % max(0, round(seconds * 1_000))


def _sse(control: str, payload: bytes, id_: str | None = None) -> bytes:
    line = b"id: %b\n" % id_.encode() if id_ is not None else b""
    return b"%bevent: stream.%b\ndata: %b\n\n" % (line, control.encode(), payload)


def _why(code: CloseCode, retry_after: float | None = None, detail: str = "") -> dict[str, Any]:
    why: dict[str, Any] = {"code": int(code), "reason": code.name}
    if retry_after is not None:
        why["retry_after"] = retry_after
    if detail:
        why["detail"] = detail
    return why


def _json(payload: Mapping[str, Any]) -> Json:
    return Json(msgspec.json.encode(payload, enc_hook=str))
