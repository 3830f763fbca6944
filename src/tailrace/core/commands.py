"""What a client says on a multiplexed WebSocket, and the server's replies (PROTOCOL.md §7).

Rules of this file
1. A command is one JSON object with `cmd`; what it does not know is refused, never guessed.
2. A command with an `id` is answered by exactly one reply with the same `id`, a good one or an error.
   Without an `id` only an error is answered, with `reply` null.
3. A reply has `reply`, which neither envelopes nor control events have.
4. Whatever comes in, nothing is raised but `Malformed`; its `data["reply"]` is the command's id as far as it is known.
   The same goes for names and cursors inside: `InvalidStream` and `InvalidCursor` answer for the one stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from tailrace.core.event import Json
from tailrace.errors import LogUnavailable, Malformed, OutcomeUnknown, RateLimited, RequestError, TailraceError

__all__ = [
    "MAX_STREAMS_ON_WEBSOCKET",
    "Ack",
    "Auth",
    "Command",
    "CommandId",
    "Ping",
    "Pong",
    "Presence",
    "Publish",
    "Subscribe",
    "Unsubscribe",
    "decode_command",
    "error_fields",
    "error_reply",
    "ping_payload",
    "reply",
    "unsubscribed_payload",
]

MAX_STREAMS_ON_WEBSOCKET = 500
MAX_ID_CHARACTERS = 64
MAX_TOKEN_CHARACTERS = 8_192

CommandId: TypeAlias = int | str
"""A client's own name for a command: an integer of at most 53 bits, or up to 64 characters."""


class _Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="cmd", kw_only=True):
    id: CommandId | None = None


class Subscribe(_Command, frozen=True, tag="subscribe"):
    """Begin to read one `stream` (from `last_id`), or several `streams`, each with its cursor (`""`: the default)."""

    stream: str | None = None
    last_id: str = ""
    streams: dict[str, str] | None = None

    @property
    def wanted(self) -> Mapping[str, str]:
        """Streams and where to begin, as the client wrote them."""
        return self.streams if self.streams is not None else {self.stream or "": self.last_id}


class Unsubscribe(_Command, frozen=True, tag="unsubscribe"):
    """Stop reading."""

    stream: str | None = None
    streams: list[str] | None = None

    @property
    def wanted(self) -> list[str]:
        """Streams as the client wrote them."""
        return self.streams if self.streams is not None else [self.stream or ""]


class Publish(_Command, frozen=True, tag="publish"):
    """Append one event, or an array of them, to a stream."""

    stream: str
    events: msgspec.Raw


class Ack(_Command, frozen=True, tag="ack"):
    """The client has dealt with everything up to `last_id`."""

    stream: str
    last_id: str


class Presence(_Command, frozen=True, tag="presence"):
    """Who else reads a stream."""

    stream: str


class Ping(_Command, frozen=True, tag="ping"):
    """Is anybody there?"""


class Pong(_Command, frozen=True, tag="pong"):
    """The answer to the server's `ping`; it is not answered itself."""


class Auth(_Command, frozen=True, tag="auth"):
    """A newer token of the same user, before the old one runs out."""

    token: str


Command: TypeAlias = Subscribe | Unsubscribe | Publish | Ack | Presence | Ping | Pong | Auth

_DECODER: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)
_ANY_ID = msgspec.json.Decoder(dict[str, msgspec.Raw])
_SHOWN = (str, int, float, bool, type(None))


def decode_command(text: str | bytes) -> Command:
    """Read one message of a client.

    Raises:
        Malformed: not a command; `data["reply"]` is its id if that much could be read, else None.
    """
    try:
        command = _DECODER.decode(text)
    except (ValueError, RecursionError) as exc:
        raise Malformed(f"not a command: {exc}", reply=_id_of(text)) from exc
    if not _good_id(command.id):
        raise Malformed(f"an id is an integer of 53 bits or 1-{MAX_ID_CHARACTERS} characters", reply=None)
    wrong = _wrong(command)
    if wrong:
        raise Malformed(wrong, reply=command.id)
    return command


def _good_id(id_: CommandId | None) -> bool:
    if isinstance(id_, str):
        return 1 <= len(id_) <= MAX_ID_CHARACTERS
    return id_ is None or -(2**53) < id_ < 2**53


def _wrong(command: Command) -> str | None:
    """What no type can say."""
    if isinstance(command, (Subscribe, Unsubscribe)):
        if (command.stream is None) == (command.streams is None):
            return "name one stream in `stream`, or several in `streams`"
        if isinstance(command, Subscribe) and command.streams is not None and command.last_id:
            return "with `streams` each stream has its own cursor; `last_id` belongs to `stream`"
        if not 1 <= len(command.wanted) <= MAX_STREAMS_ON_WEBSOCKET:
            return f"name 1 to {MAX_STREAMS_ON_WEBSOCKET} streams"
    if isinstance(command, Auth) and not 1 <= len(command.token) <= MAX_TOKEN_CHARACTERS:
        return "not a token"
    return None


def _id_of(text: str | bytes) -> CommandId | None:
    """The id of something that is no command, so that its sender can tell which one it was."""
    try:
        raw = _ANY_ID.decode(text).get("id")
        id_ = msgspec.json.decode(raw) if raw is not None else None
    except (ValueError, RecursionError):
        return None
    known = isinstance(id_, (int, str)) and not isinstance(id_, bool) and _good_id(id_)
    return id_ if known else None


# -- what the server says ----------------------------------------------------------------------------------


def reply(id_: CommandId | None, fields: Mapping[str, Any] | None = None) -> bytes:
    """The good answer to a command."""
    return _json({"reply": id_, **(fields or {})})


def error_reply(id_: CommandId | None, error: TailraceError) -> bytes:
    """The other one; the connection goes on."""
    return _json({"reply": id_, "error": error_fields(error)})


def error_fields(error: TailraceError) -> dict[str, Any]:
    """An error as the client sees it: the same code and status as in HTTP's problem documents."""
    safe = isinstance(error, RequestError) or error.retryable
    fields: dict[str, Any] = {"code": error.code, "status": error.status}
    if isinstance(error, RequestError):
        fields = {name: value for name, value in error.data.items() if isinstance(value, _SHOWN)} | fields
        fields.pop("reply", None)
    if safe and error.shown:
        fields["detail"] = error.shown
    if isinstance(error, (RateLimited, LogUnavailable, OutcomeUnknown)):
        fields["retry_after"] = error.retry_after
    return fields


def unsubscribed_payload(stream: str, error: TailraceError) -> bytes:
    """The server ended the reading of one stream; the others go on."""
    return _json(
        {
            "control": "unsubscribed",
            "stream": stream,
            "code": int(error.close_code),
            "reason": error.close_code.name,
            "error": error_fields(error),
        }
    )


def ping_payload() -> bytes:
    """The server's heartbeat. Whoever reads through `/ws` answers with a `pong` or any other command."""
    return b'{"control":"ping"}'


def _json(payload: Mapping[str, Any]) -> Json:
    return Json(msgspec.json.encode(payload, enc_hook=str))
