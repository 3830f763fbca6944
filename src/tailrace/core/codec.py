"""Event data as JSON: decoded in full once at the edge, then carried byte for byte (PROTOCOL.md §2).

Rules of this file
1. A `Json` is valid, strict UTF-8, at most `max_depth` deep, and every number in it is finite as a double.
2. Only insignificant whitespace is removed. Number spellings, key order, duplicate keys and escapes stay as written.
3. Raw control characters and lone surrogates (bytes or escapes) are refused; the escape `\\u0000` is valid and stays.
4. Whatever comes in, nothing is raised but `Malformed`, `TooLarge` and `UnsupportedMedia`.
"""

from __future__ import annotations

import math
import re
from itertools import accumulate
from typing import Any

import msgspec

from tailrace.core.event import Event, Json
from tailrace.core.names import check_type
from tailrace.errors import Malformed, RequestError, TooLarge, UnsupportedMedia

__all__ = [
    "DEFAULT_LIMITS",
    "Limits",
    "Prepared",
    "check_label",
    "check_trace",
    "decode_events",
    "encode",
    "minify",
    "prepare",
]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one publish request may hold."""

    max_events: int = 1_000
    max_body_bytes: int = 8_388_608
    max_event_bytes: int = 1_048_576
    """Of one event's minified data."""
    max_depth: int = 64


DEFAULT_LIMITS = Limits()


class Prepared(msgspec.Struct, frozen=True, gc=False):
    """An event that was checked and may be stored as it is."""

    type: str
    data: Json
    uid: str | None = None
    key: str | None = None
    actor: str | None = None
    trace: str | None = None


_DECODER = msgspec.json.Decoder()
# A string that does not end is taken to the end: trying again at each quote in it would cost its length squared.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_PAIR = b"\x01\xff"
_NOT_STRUCTURE = bytes(sorted(set(range(256)) - set(b'[]{}"')))
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_ENDLESS = b"0" * 309
# Not the digits of a fraction or an exponent, and not the whole part of a float.
_INTEGER = re.compile(rb"(?<![0-9.eE])(?<![eE][+-])[0-9]{309,}+(?![.eE])")
_LABEL = re.compile(r"[\x20-\x7e]{1,200}", re.ASCII)
_TRACE = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


def minify(raw: bytes | str, *, max_bytes: int, max_depth: int = DEFAULT_LIMITS.max_depth) -> Json:
    """Check one JSON text and return it without its insignificant whitespace.

    Raises:
        Malformed: not one strict UTF-8 JSON value, too deep, or a number beyond the range of a double.
        TooLarge: more than `max_bytes` after the whitespace is gone (`data["limit"]`).
    """
    if isinstance(raw, str):
        try:
            raw = raw.encode()
        except UnicodeEncodeError as exc:
            raise Malformed("the text holds a lone surrogate") from exc
    if len(raw) > max_bytes and len(raw.translate(None, b" \t\r\n")) > max_bytes:
        # No need to build it in memory to see that.
        raise TooLarge(f"the data is larger than {max_bytes} bytes", limit=max_bytes)
    _check_depth(raw, max_depth)
    try:
        _DECODER.decode(raw)
    except (ValueError, RecursionError) as exc:
        raise Malformed(f"not JSON: {exc}") from exc
    if len(raw) >= len(_ENDLESS):
        _check_integers(raw)
    if b" " in raw or b"\n" in raw or b"\r" in raw or b"\t" in raw:
        raw = msgspec.json.format(raw, indent=-1)
    if len(raw) > max_bytes:
        raise TooLarge(f"the data is larger than {max_bytes} bytes", limit=max_bytes)
    return Json(raw)


def encode(data: Any, *, max_bytes: int, max_depth: int = DEFAULT_LIMITS.max_depth) -> Json:
    """Encode a Python value as JSON; a `Json` passes as it is.

    The value is built of dict with str keys, list, tuple, str, int, float, bool and None. Anything else is refused:
    how a set, bytes or a time should look is the application's decision.

    Raises:
        Malformed: NaN, an infinity, a lone surrogate, a key that is no str, a type that JSON does not have, too deep.
        TooLarge: more than `max_bytes` encoded (`data["limit"]`).
    """
    if type(data) is Json:
        encoded = data
    else:
        _check_value(data, max_bytes, max_depth)
        try:
            encoded = Json(msgspec.json.encode(data, enc_hook=_plain))
        except UnicodeEncodeError as exc:
            raise Malformed("a string holds a lone surrogate") from exc
    if len(encoded) > max_bytes:
        raise TooLarge(f"the data is larger than {max_bytes} bytes", limit=max_bytes)
    return encoded


def check_label(name: str, text: str) -> str:
    """Check a uid, key or actor and return it.

    Raises:
        Malformed: not 1 to 200 printable ASCII characters.
    """
    if _LABEL.fullmatch(text) is None:
        raise Malformed(f"{name} is 1-200 printable ASCII characters", field=name)
    return text


def check_trace(text: str) -> str:
    """Check a W3C `traceparent` and return it.

    Raises:
        Malformed: not `<version>-<trace id>-<parent id>-<flags>` in lower-case hexadecimal.
    """
    if _TRACE.fullmatch(text) is None:
        raise Malformed("trace is a W3C traceparent: 00-<32 hex>-<16 hex>-<2 hex>", field="trace")
    return text


def prepare(event: Event, *, max_bytes: int) -> Prepared:
    """Check an event that an application publishes.

    Raises:
        Malformed: a type, label, trace or data that may not be stored.
        TooLarge: the data is over `max_bytes` (`data["limit"]`).
    """
    try:
        check_type(event.type)
        if event.uid is not None:
            check_label("uid", event.uid)
        if event.key is not None:
            check_label("key", event.key)
        if event.actor is not None:
            check_label("actor", event.actor)
        if event.trace is not None:
            check_trace(event.trace)
    except TypeError as exc:
        raise Malformed("type, uid, key, actor and trace are strings") from exc
    data = encode(event.data, max_bytes=max_bytes)
    return Prepared(event.type, data, event.uid, event.key, event.actor, event.trace)


class _WireEvent(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    uid: str | None = None
    key: str | None = None
    actor: str | None = None
    trace: str | None = None


_WIRE = msgspec.json.Decoder(_WireEvent)


class _Object(msgspec.Struct, gc=False):
    pass


_OBJECTS = msgspec.json.Decoder(list[_Object])
_AT = re.compile(r"\$\[([0-9]+)\]")
_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])
_JSON_TYPES = frozenset({"application/json"})
_LINE_TYPES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"})


def decode_events(body: bytes, content_type: str, limits: Limits = DEFAULT_LIMITS) -> list[Event]:
    """Read the body of a publish request: one event, a JSON array of events, or one event per line (NDJSON).

    Every event is checked as `prepare` does; an error names the event by its index (`data["index"]`).

    Raises:
        UnsupportedMedia: the content type is neither JSON nor NDJSON, or not UTF-8.
        Malformed: an event or the body around them cannot be understood, or there is none.
        TooLarge: body, number of events, or one event's data over its limit (`data["limit"]`).
    """
    lines = _is_lines(content_type)
    if len(body) > limits.max_body_bytes:
        raise TooLarge(f"the body is larger than {limits.max_body_bytes} bytes", limit=limits.max_body_bytes)
    parts = _split_lines(body, limits) if lines else _split_array(body, limits)
    if not parts:
        raise Malformed("the body holds no event")
    return [_decode_at(index, part, limits) for index, part in enumerate(parts)]


def _is_lines(content_type: str) -> bool:
    media, _, parameters = content_type.partition(";")
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip(' \t"').lower() not in {"utf-8", "utf8"}:
            raise UnsupportedMedia("events are UTF-8")
    media = media.strip().lower()
    if media not in _JSON_TYPES and media not in _LINE_TYPES:
        raise UnsupportedMedia("send application/json or application/x-ndjson")
    return media in _LINE_TYPES


def _split_lines(body: bytes, limits: Limits) -> list[bytes]:
    most = 4 * limits.max_events  # blank ones included
    lines = body.split(b"\n", most)
    parts = [line for line in lines if line.strip(b" \t\r")]
    if len(parts) > limits.max_events or len(lines) > most:
        raise _too_many(limits)
    return parts


def _split_array(body: bytes, limits: Limits) -> list[bytes]:
    begun = body.lstrip(b" \t\r\n")
    if not begun.startswith(b"["):
        return [body] if begun else []
    _check_depth(body, limits.max_depth + 2)
    try:
        # Counted before they are taken: four million numbers are no events, but would be half a gigabyte of objects.
        if len(_OBJECTS.decode(body)) > limits.max_events:
            raise _too_many(limits)
        return [bytes(part) for part in _ARRAY.decode(body)]
    except ValueError as exc:
        index = _AT.search(str(exc))
        where = {"index": int(index[1])} if index is not None else {}
        raise Malformed(f"not a JSON array of events: {exc}", **where) from exc


def _too_many(limits: Limits) -> TooLarge:
    return TooLarge(f"more than {limits.max_events} events", limit=limits.max_events)


def _decode_at(index: int, part: bytes, limits: Limits) -> Event:
    try:
        _check_depth(part, limits.max_depth + 1)
        wire = _WIRE.decode(part)
        data = minify(bytes(wire.data), max_bytes=limits.max_event_bytes, max_depth=limits.max_depth)
        event = Event(wire.type, data, wire.uid, wire.key, wire.actor, wire.trace)
        prepare(event, max_bytes=limits.max_event_bytes)
    except RequestError as exc:
        raise type(exc)(f"event {index}: {exc.detail}", **{**exc.data, "index": index}) from exc
    except ValueError as exc:
        raise Malformed(f"event {index}: {exc}", index=index) from exc
    return event


def _check_depth(raw: bytes, max_depth: int) -> None:
    """Refuse before the decoder recurses: an upper bound on the depth at any point, exact for valid JSON."""
    if raw.count(b"[") + raw.count(b"{") <= max_depth:
        return
    # Whether a bracket is in a string is the parity of the quotes before it; taking two of them away changes no parity.
    quotes = raw.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NOT_STRUCTURE).replace(b'""', b"")
    steps = (b"".join(quotes.split(b'"')[::2]) if b'"' in quotes else quotes).translate(_STEPS)
    depth = 0
    while depth < max_depth and len(shorter := steps.replace(_PAIR, b"")) < len(steps) * 0.9:
        # The innermost level everywhere.
        steps, depth = shorter, depth + 1
    if depth + max(accumulate(memoryview(steps).cast("b")), default=0) > max_depth:
        raise Malformed(f"deeper than {max_depth}", limit=max_depth)


def _check_integers(raw: bytes) -> None:
    """The decoder refuses floats out of range, but reads an integer of any length; a browser would see Infinity."""
    if _ENDLESS not in raw.translate(_DIGITS):
        return
    for digits in _INTEGER.finditer(_STRING.sub(b'""', raw)):
        if not math.isfinite(float(digits[0])):
            raise Malformed("not JSON: a number out of range")


_LEAVES = frozenset({str, int, bool, type(None)})


def _check_value(data: Any, max_values: int, max_depth: int) -> None:
    level, depth, seen = [data], 0, 1
    while level:
        below: list[Any] = []
        for value in level:
            if type(value) in _LEAVES:
                continue
            if isinstance(value, dict):
                for key in value:
                    if not isinstance(key, str):
                        raise Malformed(f"a key is a str, not {type(key).__name__}")
                below.extend(value.values())
            elif isinstance(value, (list, tuple)):
                below.extend(value)
            elif isinstance(value, float):
                if not math.isfinite(value):
                    raise Malformed("NaN and infinities are not JSON")
                continue
            elif isinstance(value, (str, int)):
                continue
            else:
                raise Malformed(f"{type(value).__name__} is not JSON")
            if depth >= max_depth:
                raise Malformed(f"deeper than {max_depth}", limit=max_depth)
            # Every value takes at least a byte; a list that holds itself twice would double with each level.
            if seen + len(below) > max_values:
                raise TooLarge(f"the data is larger than {max_values} bytes", limit=max_values)
        seen += len(below)
        level, depth = below, depth + 1


def _plain(value: Any) -> str | int | float:
    """msgspec takes no subclasses of these (a `StreamName`, a numpy float)."""
    if isinstance(value, str):
        return str.__str__(value)
    return float(value) if isinstance(value, float) else int(value)
