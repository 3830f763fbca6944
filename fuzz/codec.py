"""No matter what body is published: events of strict JSON, or Malformed, TooLarge, UnsupportedMedia."""

from __future__ import annotations

import json
import math
from typing import Any

from tailrace.core.codec import Limits, decode_events, minify
from tailrace.errors import Malformed, TooLarge, UnsupportedMedia

__all__ = ["check"]

LIMITS = Limits(max_events=20, max_body_bytes=3_000, max_event_bytes=500, max_depth=8)
TYPES = ["application/json", "application/x-ndjson", "application/json; charset=utf-8", ""]


def check(data: bytes) -> None:
    """The first byte says what the rest is said to be."""
    media, body = (TYPES[data[0] % 4], data[1:]) if data else ("", b"")
    try:
        for event in decode_events(body, media, LIMITS):
            check_json(event.data, LIMITS.max_event_bytes)
    except (Malformed, TooLarge, UnsupportedMedia):
        pass
    try:
        kept = minify(body, max_bytes=500, max_depth=8)
    except (Malformed, TooLarge):
        return
    check_json(kept, 500)
    assert minify(kept, max_bytes=500, max_depth=8) == kept


def check_json(kept: bytes, most: int) -> None:
    """What is stored is small enough, on one line, and read by another parser too."""
    assert len(kept) <= most
    assert not set(kept) & set(b"\r\n\0")
    check_value(json.loads(kept.decode(), parse_constant=refuse), 8)


def check_value(value: Any, depth: int) -> None:
    """No number is endless and no text half a character, at any depth that is allowed."""
    assert depth >= 0
    if isinstance(value, (int, float)):
        assert math.isfinite(float(value))
    elif isinstance(value, str):
        value.encode()
    elif isinstance(value, list):
        for each in value:
            check_value(each, depth - 1)
    elif isinstance(value, dict):
        for name, each in value.items():
            name.encode()
            check_value(each, depth - 1)


def refuse(name: str) -> None:
    """`NaN` and its like are no JSON."""
    raise AssertionError(name)
