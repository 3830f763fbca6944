"""No matter what text: a documented name or type, InvalidStream or Malformed; escaping is one to one."""

from __future__ import annotations

import re

from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName, check_type, escape_name, foreign_type
from tailrace.errors import InvalidCursor, InvalidStream, Malformed

__all__ = ["check"]

_ESCAPED = re.compile(rb"~([0-9A-F]{2})")


def check(data: bytes) -> None:
    """One text as everything that has a name."""
    text = data.decode("utf-8", "replace")
    try:
        stream = StreamName.parse(text)
        assert (stream.isascii(), f"{stream.kind}:{stream.name}") == (True, text)
    except InvalidStream:
        pass
    try:
        assert check_type(text) == foreign_type(text) == text
        assert text.isascii()
        assert text.isprintable()
    except Malformed:
        assert foreign_type(text) == "foreign"
    try:
        assert str(EntryId.parse(text)) == text
    except InvalidCursor:
        pass
    try:
        escaped = escape_name(text)
    except InvalidStream:
        return
    StreamName.parse(f"user:{escaped}")
    plain = escaped[2:] if escaped.startswith(("0~.", "0~_", "0~@", "0~-", "0~~")) else escaped
    assert _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), plain.encode()).decode() == text
