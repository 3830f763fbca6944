"""Messages as the application publishes them, and the events that they are in a stream.

Rules of this file
1. The old channel gets the text that the application's own `dumps` makes; nothing of ours is in it.
2. The stream gets the same object as the event's data: the same text without its insignificant whitespace.
3. Whatever was published on a channel can be stored: a message that is not JSON becomes an object with its text.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes

import msgspec

from tailrace.core.codec import minify
from tailrace.core.event import Event
from tailrace.core.names import StreamName, check_type, escape_name
from tailrace.errors import ConfigError, Malformed

__all__ = [
    "DEFAULT_CHANNEL",
    "ENDED_SECONDS",
    "ENDS",
    "KIND",
    "NO_TYPE",
    "TEXT",
    "ChannelTemplate",
    "Dumps",
    "Message",
    "complete",
    "error",
    "event_of",
    "node_output",
    "stream_of",
    "text_of",
    "unescape_name",
]

KIND = "workflow"
DEFAULT_CHANNEL = "workflow:{id}"
NO_TYPE = "workflow.message"
"""Type of a message whose own `type` may not be one, or that has none."""
TEXT = "workflow.text"
"""Type of a message that is not JSON."""
ENDS = frozenset({"workflow_complete", "workflow_error"})
"""Types of the messages with which a workflow ends …"""
ENDED_SECONDS = 86_400.0
"""… and how long its stream stays after one."""

Message: TypeAlias = dict[str, Any] | str | bytes
"""An object, or the JSON text of one, which is published as it is."""
Dumps: TypeAlias = Callable[[Any], str | bytes]


class _Typed(msgspec.Struct):
    type: Any = None


_TYPED = msgspec.json.Decoder(_Typed)


class ChannelTemplate:
    """The old channels: a text with `{id}` in it once.

    Raises:
        ConfigError: it has none, or a wildcard beside it.
    """

    def __init__(self, template: str) -> None:
        before, found, after = template.partition("{id}")
        if not found or "{" in before + after or set(before + after) & set("*?[]\\ "):
            raise ConfigError("a channel template has {id} in it once, and no braces, blanks or wildcards beside it")
        self._before, self._after = before, after

    def channel(self, workflow_id: str) -> str:
        """The channel of a workflow."""
        return f"{self._before}{workflow_id}{self._after}"

    def workflow_id(self, channel: str) -> str | None:
        """The workflow whose channel this is; None: it is another's."""
        size = len(self._before) + len(self._after)
        if len(channel) <= size or not (channel.startswith(self._before) and channel.endswith(self._after)):
            return None
        return channel[len(self._before) : len(channel) - len(self._after)]


def stream_of(workflow_id: str | int) -> StreamName:
    """The stream of a workflow. Bytes that a name may not hold are escaped (PROTOCOL.md §2.1).

    Raises:
        InvalidStream: the id is empty or too long.
    """
    return StreamName.parse(f"{KIND}:{escape_name(str(workflow_id))}")


def unescape_name(name: str) -> str:
    """The id whose stream has this name."""
    return unquote_to_bytes(name.removeprefix("0~" if name.startswith("0~") else "").replace("~", "%")).decode(
        errors="replace"
    )


def text_of(message: Message, dumps: Dumps = json.dumps) -> bytes:
    """What the old channel gets."""
    text = message if isinstance(message, (str, bytes)) else dumps(message)
    return text.encode() if isinstance(text, str) else bytes(text)


def event_of(text: bytes, *, max_bytes: int = 1_048_576) -> Event:
    """What the stream gets for a message.

    Raises:
        TooLarge: more than a stream of this kind takes.
    """
    try:
        data = minify(text, max_bytes=max_bytes)
    except Malformed:
        return Event(TEXT, _as_object(text))
    return Event(_type_of(data), data)


def _type_of(data: bytes) -> str:
    try:
        found = _TYPED.decode(data).type
        return check_type(found) if isinstance(found, str) else NO_TYPE
    except (Malformed, msgspec.MsgspecError):
        return NO_TYPE


def _as_object(text: bytes) -> dict[str, str]:
    try:
        return {"text": text.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(text).decode()}


def node_output(workflow_id: str | int, node_id: str, output: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """The message of a node's output."""
    return {"type": "node_output", "workflow_id": workflow_id, "node_id": node_id, "output": output, **fields}


def complete(workflow_id: str | int, result: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """The message of a workflow's good end."""
    return {"type": "workflow_complete", "workflow_id": workflow_id, "result": result, **fields}


def error(workflow_id: str | int, error: object, fields: dict[str, Any]) -> dict[str, Any]:
    """The message of a workflow's bad end."""
    return {"type": "workflow_error", "workflow_id": workflow_id, "error": str(error), **fields}
