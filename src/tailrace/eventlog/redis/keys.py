"""The names of a stream's keys (PROTOCOL.md §9).

    <prefix><kind>:{<name>}:events   the stream itself
    <prefix><kind>:{<name>}:meta     hash: where it ends and what became of it
    <prefix><kind>:{<name>}:uids     hash: the last 1 024 uids
    <prefix><kind>:{<name>}:push     Pub/Sub channel of its records

The braces make the name the Cluster hash tag, so that the keys of one stream share a slot. A kind may have a template
of its own; where it ends in `:events` the other names replace that, otherwise they are appended.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import NamedTuple

from tailrace.core.kinds import Kinds
from tailrace.core.names import StreamName
from tailrace.errors import ConfigError

__all__ = ["CONVERSATION_TEMPLATE", "DEFAULT_TEMPLATE", "LEGACY_TEMPLATES", "Keys", "StreamKeys"]

DEFAULT_TEMPLATE = "{prefix}{kind}:{{{name}}}:events"
CONVERSATION_TEMPLATE = "{prefix}stream:{kind}:{{{name}}}"
LEGACY_TEMPLATES: Mapping[str, str] = {
    "run": "run:{name}:events",
    "workflow": "workflow:{name}:events",
    "conversation": "stream:conversation:{name}",
    "fanout": "stream:fanout:{name}",
}
"""The keys of systems that come from plain Redis Streams; without hash tags, so for one server or Sentinel only."""

_TAG = re.compile(r"\{[^{}]+\}")
_PREFIX = re.compile(r"[!-~]{0,64}", re.ASCII)
_NOT_IN_PREFIX = frozenset("{}*?[]\\")
_MAX_KNOWN = 65_536


class StreamKeys(NamedTuple):
    """The keys of one stream."""

    events: bytes
    meta: bytes
    uids: bytes
    push: bytes


class Keys:
    """Maps streams to keys.

    Args:
        kinds: their templates count.
        prefix: put before every key of the default template; may be empty.
        cluster: every template must have a hash tag.

    Raises:
        ConfigError: a prefix or template that cannot work.
    """

    def __init__(self, kinds: Kinds, *, prefix: str = "tailrace:", cluster: bool = False) -> None:
        if _PREFIX.fullmatch(prefix) is None or _NOT_IN_PREFIX & set(prefix):
            raise ConfigError("a key prefix is at most 64 printable characters without braces, blanks and wildcards")
        self.prefix = prefix
        self._kinds = kinds
        self._cluster = cluster
        self._known: dict[StreamName, StreamKeys] = {}
        self._checked: set[str] = set()

    def of(self, stream: StreamName) -> StreamKeys:
        """The keys of a stream.

        Raises:
            ConfigError: its kind's template cannot work.
        """
        keys = self._known.get(stream)
        if keys is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            keys = self._known[stream] = self._make(stream)
        return keys

    def _make(self, stream: StreamName) -> StreamKeys:
        template = self._kinds.of(stream).key_template or DEFAULT_TEMPLATE
        if template not in self._checked:
            _check(template, cluster=self._cluster)
            self._checked.add(template)
        events = template.format(prefix=self.prefix, kind=stream.kind, name=stream.name)
        base = events.removesuffix(":events")
        return StreamKeys(events.encode(), f"{base}:meta".encode(), f"{base}:uids".encode(), f"{base}:push".encode())


def _check(template: str, *, cluster: bool) -> None:
    try:
        fields = {field for _, field, spec, conversion in string.Formatter().parse(template) if field is not None}
        sample = template.format(prefix="", kind="k", name="n")
    except (ValueError, KeyError, IndexError) as exc:
        raise ConfigError(f"the key template {template!r} cannot be read") from exc
    if "name" not in fields or not fields <= {"prefix", "kind", "name"}:
        raise ConfigError(f"the key template {template!r} needs {{name}}, and only {{prefix}}, {{kind}} and {{name}}")
    if sample.endswith((":meta", ":uids", ":push")) or not sample.isascii() or " " in sample:
        raise ConfigError(f"the key template {template!r} makes names that tailrace needs for itself")
    if cluster and _TAG.search(sample) is None:
        raise ConfigError(f"on Redis Cluster the key template {template!r} needs a hash tag, such as {{{{{{name}}}}}}")
