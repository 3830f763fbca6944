"""Parameters of requests: read strictly, once.

A parameter that is given twice, or is not what it should be, is a 400 that names it; nothing is cut or guessed.
Unknown parameters are ignored, since proxies and caches add some.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from starlette.requests import ClientDisconnect, HTTPConnection, Request

from tailrace.core.cursor import Resume, Special, parse_cursor, parse_resume
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName, check_type
from tailrace.errors import InvalidCursor, Malformed, RequestTimeout, TooLarge

__all__ = [
    "boolean",
    "choice",
    "integer",
    "last_event_id",
    "one",
    "range_id",
    "read_body",
    "resume_of",
    "since_id",
    "stream_list",
    "type_list",
]

_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_MS = re.compile(r"[0-9]{1,20}", re.ASCII)
_MAX = 2**64 - 1
MAX_TYPES = 64


def one(connection: HTTPConnection, name: str) -> str | None:
    """A parameter that may be given once; empty is absent."""
    values = connection.query_params.getlist(name)
    if len(values) > 1:
        raise Malformed(f"{name} is given more than once", field=name)
    return values[0] if values and values[0] != "" else None


def integer(connection: HTTPConnection, name: str, default: int, *, low: int, high: int) -> int:
    """A whole number between `low` and `high`."""
    text = one(connection, name)
    if text is None:
        return default
    if _INTEGER.fullmatch(text) is None or not low <= int(text) <= high:
        raise Malformed(f"{name} is a whole number from {low} to {high}", field=name)
    return int(text)


def boolean(connection: HTTPConnection, name: str, *, default: bool) -> bool:
    """`0` or `1`, `false` or `true`."""
    text = choice(connection, name, ("0", "1", "false", "true"))
    return default if text is None else text in ("1", "true")


def choice(connection: HTTPConnection, name: str, words: Sequence[str]) -> str | None:
    """One of some words."""
    text = one(connection, name)
    if text is not None and text not in words:
        raise Malformed(f"{name} is one of {', '.join(words)}", field=name)
    return text


def stream_list(connection: HTTPConnection, *, most: int) -> list[StreamName]:
    """The `stream=` parameters, in their order; may be none."""
    texts = connection.query_params.getlist("stream")
    if len(texts) > most:
        raise Malformed(f"at most {most} streams in one request", field="stream", limit=most)
    streams = [StreamName.parse(text) for text in texts]
    if len(set(streams)) != len(streams):
        raise Malformed("a stream is named twice", field="stream")
    return streams


def type_list(connection: HTTPConnection) -> frozenset[str] | None:
    """`types=a,b`, repeatable: only these event types."""
    texts = [part for value in connection.query_params.getlist("types") for part in value.split(",") if part]
    if len(texts) > MAX_TYPES:
        raise Malformed(f"at most {MAX_TYPES} types", field="types", limit=MAX_TYPES)
    return frozenset(check_type(text) for text in texts) or None


def range_id(connection: HTTPConnection, name: str) -> EntryId | None:
    """`start_id` or `end_id`: an id, or a time in ms, which stands for the whole millisecond."""
    text = one(connection, name)
    if text is None:
        return None
    if _MS.fullmatch(text) is not None and int(text) <= _MAX:
        return EntryId(int(text), 0 if name == "start_id" else _MAX)
    return EntryId.parse(text)


def since_id(connection: HTTPConnection) -> Resume | None:
    """`since_id` of one stream: an id, `0`, or a time in ms."""
    text = one(connection, "since_id")
    if text is None:
        return None
    resume = parse_resume(text)
    if resume is Special.NOW:
        raise InvalidCursor("history has nothing after $; since_id is an id, 0, or a time in milliseconds")
    return resume


def last_event_id(connection: HTTPConnection, *, max_bytes: int) -> tuple[str, bool]:
    """Where a reader comes back, and whether the header said so.

    The header wins over `last_event_id` and `last_id`: an EventSource re-sends its old URL with a new header.
    """
    headers = connection.headers.getlist("last-event-id")
    if len(headers) > 1:
        raise InvalidCursor("Last-Event-ID is given more than once")
    if headers and headers[0].strip():
        text, from_header = headers[0].strip(), True
    else:
        names = [name for name in ("last_event_id", "last_id") if connection.query_params.getlist(name)]
        if len(names) > 1:
            raise Malformed("send last_event_id or last_id, not both", field="last_id")
        text, from_header = (one(connection, names[0]) or "") if names else "", False
    if len(text) > max_bytes:
        raise InvalidCursor(f"a cursor has at most {max_bytes} bytes", limit=max_bytes)
    return text, from_header


def resume_of(text: str, streams: Sequence[StreamName]) -> dict[StreamName, Resume]:
    """Where to resume in each stream."""
    return parse_cursor(text, streams)


async def read_body(request: Request, *, max_bytes: int, seconds: float) -> bytes:
    """Read a body, counting while it comes.

    Raises:
        TooLarge: over `max_bytes`; nothing more is read.
        RequestTimeout: not complete in time.
        Malformed: the client went away in the middle.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise TooLarge(f"the body is larger than {max_bytes} bytes", limit=max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > max_bytes:
                    raise TooLarge(f"the body is larger than {max_bytes} bytes", limit=max_bytes)
    except TimeoutError:
        raise RequestTimeout(f"the body was not complete within {seconds:g} s") from None
    except ClientDisconnect:
        raise Malformed("the body ended early") from None
    return bytes(body)
