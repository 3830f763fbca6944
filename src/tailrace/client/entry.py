"""What a spool holds: its entries, and the other lines of its file."""

from __future__ import annotations

import logging
from typing import TypeVar

import msgspec

from tailrace.core.event import Event, Json
from tailrace.core.names import StreamName

__all__ = ["Entry", "Header", "Line", "Note", "readable"]

log = logging.getLogger("tailrace.client")

T = TypeVar("T")


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing to do, in order: append an event, or close a stream."""

    s: str
    """stream"""
    t: str = ""
    """type; empty: close the stream"""
    d: msgspec.Raw = msgspec.Raw(b"null")
    """data"""
    u: str | None = None
    """uid"""
    k: str | None = None
    a: str | None = None
    e: int | None = None
    """owner's epoch"""

    @classmethod
    def of(cls, stream: StreamName, event: Event, owner_epoch: int | None = None) -> Entry:
        """An event to append; its data is `Json`."""
        return cls(str(stream), event.type, msgspec.Raw(event.data), event.uid, event.key, event.actor, owner_epoch)

    @property
    def stream(self) -> StreamName:
        """Where it goes."""
        return StreamName(self.s)

    @property
    def closes(self) -> bool:
        """Whether it ends its stream."""
        return not self.t

    def event(self) -> Event:
        """The event, checked when it was put in."""
        return Event(self.t, Json(self.d), self.u, self.k, self.a)


class Line(msgspec.Struct):
    """What a line of a file may be besides an entry."""

    s: str | None = None
    done: int | None = None
    spool: int | None = None


class Note(msgspec.Struct, frozen=True):
    """A line that keeps a fact, or forgets it."""

    note: str
    """What it is about; the last one counts."""
    of: str | None
    """None: forgotten."""


class Header(msgspec.Struct, frozen=True):
    """The first line of a file."""

    spool: int
    """Version."""
    target: str
    """Whom the entries are for."""
    epilogue: list[Entry] = []
    """What is to be done when the writer died: added by who takes the file over."""


def readable(decoder: msgspec.json.Decoder[T], line: bytes) -> T | None:
    """What a line says; None: it is damaged, which is logged."""
    try:
        return decoder.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        log.error("a line of a spool cannot be read, and is left out", extra={"reason": str(exc)})
        return None
