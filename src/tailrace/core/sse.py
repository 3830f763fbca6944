"""Server-Sent Events as such: one event to bytes, and bytes in any cuts to events (PROTOCOL.md §6).

Rules of this file
1. What the WHATWG standard says about parsing is done to the letter: a BOM, CR, LF and CRLF across cuts, an `id` with
   NUL ignored, `retry` of digits only, an unfinished event at the end of the stream discarded.
2. The encoder refuses what could not be read back; it cleans nothing.
3. The parser is bounded: a line or an event over its limit ends it, whatever the cuts.
"""

from __future__ import annotations

import codecs
import re

import msgspec

from tailrace.errors import Malformed, TooLarge

__all__ = ["ServerEvent", "SseComment", "SseParser", "encode_event"]

_LINE_END = re.compile(rb"\r\n|\r|\n")
_UNSAFE = re.compile(r"[\r\n\x00]")
_BREAKS = re.compile(r"\r\n|\r|\n")


class ServerEvent(msgspec.Struct, frozen=True):
    """One event as an EventSource dispatches it."""

    event: str
    data: str
    id: str
    """The last event id at this moment; it stays from event to event."""


class SseComment(msgspec.Struct, frozen=True):
    """A comment line, without its colon. Heartbeats are empty ones."""

    text: str


def encode_event(
    data: str | None = None,
    *,
    event: str | None = None,
    id: str | None = None,  # noqa: A002 - the field's name
    retry_ms: int | None = None,
    comment: str | None = None,
) -> bytes:
    """Encode one event. Line breaks are kept in data and comments, as one line each; data's become LF.

    Raises:
        Malformed: CR, LF or NUL in the id or event name, a negative retry, a lone surrogate.
    """
    for name, text in (("id", id), ("event", event)):
        if text is not None and _UNSAFE.search(text):
            raise Malformed(f"{name} holds a CR, LF or NUL", field=name)
    if retry_ms is not None and retry_ms < 0:
        raise Malformed("retry is not negative", field="retry")
    lines = [f": {line}" if line else ":" for line in _BREAKS.split(comment)] if comment is not None else []
    if retry_ms is not None:
        lines.append(f"retry: {retry_ms}")
    if id is not None:
        lines.append(f"id: {id}")
    if event is not None:
        lines.append(f"event: {event}")
    if data is not None:
        lines += [f"data: {line}" for line in _BREAKS.split(data)]
    if data is not None or id is not None or event is not None:
        lines.append("")
    try:
        return "".join(f"{line}\n" for line in lines).encode()
    except UnicodeEncodeError as exc:
        raise Malformed("the event holds a lone surrogate") from exc


class SseParser:
    """Bytes in, events out, for any cuts of the bytes."""

    def __init__(self, *, last_event_id: str = "", max_event_bytes: int = 8_388_608, comments: bool = False) -> None:
        self.last_event_id = last_event_id
        """What to send as `Last-Event-ID` when coming back. Moves with the events that were dispatched."""
        self.retry_ms: int | None = None
        """The reconnection time that the server asked for last."""
        self._limit = max_event_bytes
        self._comments = comments
        self._rest = bytearray()
        self._scanned = 0
        self._after_cr = False
        self._bom = bytearray()
        self._started = False
        self._id = last_event_id
        self._event = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[ServerEvent | SseComment]:
        """Take the next bytes and return what they complete.

        Raises:
            TooLarge: an event, or a line of it, is over the limit; the parser is of no use any more.
        """
        chunk = self._skip_bom(chunk)
        if not chunk:
            return []
        if self._after_cr:
            # The LF of a CRLF that was cut in two.
            chunk = chunk.removeprefix(b"\n")
        self._rest += chunk
        found: list[ServerEvent | SseComment] = []
        begin = 0
        for end in _LINE_END.finditer(self._rest, self._scanned):
            self._check(end.start() - begin)
            self._line(bytes(self._rest[begin : end.start()]), found)
            begin = end.end()
        self._after_cr = chunk.endswith(b"\r")
        del self._rest[:begin]
        self._scanned = len(self._rest)
        self._check(len(self._rest))
        return found

    def _skip_bom(self, chunk: bytes) -> bytes:
        """One BOM may stand at the very beginning."""
        if self._started:
            return chunk
        self._bom += chunk
        if codecs.BOM_UTF8.startswith(self._bom) and len(self._bom) < len(codecs.BOM_UTF8):
            return b""
        self._started = True
        return bytes(self._bom.removeprefix(codecs.BOM_UTF8))

    def _check(self, length: int) -> None:
        if self._size + length > self._limit:
            raise TooLarge(f"an event is larger than {self._limit} bytes", limit=self._limit)

    def _line(self, line: bytes, found: list[ServerEvent | SseComment]) -> None:
        if not line:
            self._dispatch(found)
            return
        field, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
            self._size += len(line)
        elif field == "event":
            self._event = value
        elif field == "id":
            if "\x00" not in value:
                self._id = value
        elif field == "retry":
            if value.isascii() and value.isdigit():
                self.retry_ms = int(value[:18])
        elif not field and self._comments:
            found.append(SseComment(value))

    def _dispatch(self, found: list[ServerEvent | SseComment]) -> None:
        self.last_event_id = self._id
        if self._data:
            found.append(ServerEvent(self._event or "message", "\n".join(self._data), self._id))
        self._event, self._data, self._size = "", [], 0
