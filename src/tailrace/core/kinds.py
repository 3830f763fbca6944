"""Stream kinds: the policy that all streams of one kind share (PROTOCOL.md §2)."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from tailrace.core.names import StreamName

__all__ = ["DEFAULT_KINDS", "Kinds", "Start", "StreamKind"]


class Start(StrEnum):
    """Where a reader without a cursor begins."""

    FIRST = "first"
    """At the first retained record: a page refresh shows everything."""
    NOW = "now"
    """At the head: only what comes."""


class StreamKind(msgspec.Struct, frozen=True, kw_only=True):
    """The policy of one kind of stream."""

    name: str
    start: Start = Start.FIRST
    max_length: int = 10_000
    """At least this many records are kept (MAXLEN ~); up to one node, 100 entries, more."""
    max_age_seconds: float | None = None
    """Records older than this may be trimmed (MINID ~); None: age does not matter."""
    idle_ttl_seconds: float | None = None
    """The stream expires when nothing was appended for this long; None: it stays."""
    closed_ttl_seconds: float | None = 86_400
    """The stream expires this long after it was closed; None: it stays."""
    max_event_bytes: int = 1_048_576
    """Limit of one event's minified data."""
    format: str = "envelope"
    """`envelope` or `raw`: what a reader gets that does not say (PROTOCOL.md §6)."""
    key_template: str | None = None
    """Redis key with `{prefix}`, `{kind}` and `{name}`; None: the default of PROTOCOL.md §9."""


class Kinds:
    """The stream kinds of one installation; an unknown kind has the default policy under its own name."""

    def __init__(self, kinds: Iterable[StreamKind] = (), *, default: StreamKind | None = None) -> None:
        self._kinds = {kind.name: kind for kind in (*DEFAULT_KINDS, *kinds)}
        self._default = default if default is not None else StreamKind(name="")

    def __contains__(self, name: object) -> bool:
        return name in self._kinds

    def of(self, stream: StreamName) -> StreamKind:
        """The policy of a stream."""
        name = stream.kind
        kind = self._kinds.get(name)
        return kind if kind is not None else msgspec.structs.replace(self._default, name=name)


_DAY = 86_400.0
DEFAULT_KINDS = (
    StreamKind(name="run"),
    StreamKind(name="task"),
    StreamKind(name="workflow"),
    StreamKind(name="conversation", max_length=1_000, max_age_seconds=_DAY),
    StreamKind(name="user", start=Start.NOW, max_age_seconds=_DAY),
    StreamKind(name="system", start=Start.NOW, max_age_seconds=_DAY),
)
