"""Stream names, `<kind>:<name>`, and event types (PROTOCOL.md §2)."""

from __future__ import annotations

import re
from functools import lru_cache

from tailrace.errors import InvalidStream, Malformed

__all__ = ["FOREIGN_TYPE", "StreamName", "check_type", "escape_name", "foreign_type"]

_KIND = r"[a-z][a-z0-9-]{0,31}"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._~@-]{0,199}"
_STREAM = re.compile(rf"({_KIND}):({_NAME})", re.ASCII)
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", re.ASCII)
_RESERVED_TYPES = frozenset({"error", "open", "message"})
_RESERVED_PREFIXES = ("stream.", "tailrace.")
FOREIGN_TYPE = "foreign"
"""Type of an entry of somebody else that names none, or none that may be used."""
_UNSAFE = re.compile(rb"[^A-Za-z0-9._@-]")


class StreamName(str):
    """A checked stream name. It is a `str`, so it hashes and compares at that cost; make one with `parse`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> StreamName:
        """Check a name.

        Raises:
            InvalidStream: not `<kind>:<name>` in the allowed characters and lengths.
        """
        if type(text) is cls:
            return text
        if _STREAM.fullmatch(text) is None:
            raise InvalidStream("a stream name is <kind>:<name>, e.g. run:42 (letters, digits, and . _ ~ @ -)")
        return cls(text)

    @property
    def kind(self) -> str:
        """What is before the colon: the policy this stream shares with others."""
        return self.partition(":")[0]

    @property
    def name(self) -> str:
        """What is after the colon."""
        return self.partition(":")[2]


def escape_name(text: str) -> str:
    """Make a stream's name part from data such as a JWT `sub`: one name per text, `auth0|1` becomes `auth0~7C1`.

    Raises:
        InvalidStream: the text is empty or too long to become a name.
    """
    escaped = _UNSAFE.sub(lambda match: b"~%02X" % match[0][0], text.encode()).decode()
    if escaped[:1] in {".", "_", "@", "-", "~"}:
        # A name starts with a letter or digit, and "0~" before one of these can start no other escaped text.
        escaped = "0~" + escaped
    if not 1 <= len(escaped) <= 200:
        raise InvalidStream("this text cannot be part of a stream name", length=len(escaped))
    return escaped


@lru_cache(maxsize=4_096)
def check_type(text: str) -> str:
    """Check an event type that an application publishes and return it.

    Raises:
        Malformed: wrong characters or length, or a name that belongs to browsers or to tailrace.
    """
    if _TYPE.fullmatch(text) is None:
        raise Malformed("an event type is 1-128 of letters, digits and . _ : / - and starts with a letter or digit")
    if _is_reserved(text):
        raise Malformed(f"the event type {text!r} is reserved")
    return text


def foreign_type(text: str) -> str:
    """The type of an entry that somebody else wrote: `text` if it may be a type, else `foreign`."""
    return text if _TYPE.fullmatch(text) is not None and not _is_reserved(text) else FOREIGN_TYPE


def _is_reserved(text: str) -> bool:
    return text in _RESERVED_TYPES or text.startswith(_RESERVED_PREFIXES)
