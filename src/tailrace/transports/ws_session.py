"""The multiplexed WebSocket as a state machine: messages of the client in, what to do out (PROTOCOL.md §7).

Rules of this file
1. Pure: no socket, no clock, no waiting. `websocket.py` obeys and reports back.
2. A stream is *opening* from its command until the log answered, then *reading* until it is taken back, ends or is
   denied. Both count against the limit. A stream that is not wanted any more when the log answers is given back.
3. Every command costs; a `pong` that was asked for does not. Over the limit it is answered with RATE_LIMITED, and a
   client that goes on regardless is closed with LIMITED.
4. Whatever a client sends, the answer is an action, never an exception.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any, TypeAlias

import msgspec

from tailrace.codes import CloseCode
from tailrace.core import commands
from tailrace.core.codec import DEFAULT_LIMITS, Limits, decode_events
from tailrace.core.commands import CommandId
from tailrace.core.cursor import Resume, parse_resume
from tailrace.core.event import Event
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.errors import Conflict, Forbidden, Malformed, NotFound, RateLimited, RequestError, TailraceError, TooLarge

__all__ = [
    "Action",
    "Append",
    "Count",
    "End",
    "Meter",
    "Open",
    "Opened",
    "Renew",
    "Say",
    "Session",
    "SessionOptions",
    "Unread",
]

STUBBORN = 60
"""So many commands in a row over the limit, and the client is closed."""


class SessionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What one connection may ask for."""

    max_streams: int = commands.MAX_STREAMS_ON_WEBSOCKET
    commands_per_minute: int = 120
    idle_seconds: float = 60.0
    """A client that answered no `ping` for this long is gone."""
    limits: Limits = DEFAULT_LIMITS


# -- actions -----------------------------------------------------------------------------------------------


class Say(msgspec.Struct, frozen=True):
    """Send this."""

    payload: bytes


class End(msgspec.Struct, frozen=True):
    """Close the connection."""

    code: CloseCode
    detail: str = ""


class Opening(msgspec.Struct, eq=False):
    """One wish to read a stream; two wishes are never equal."""

    stream: StreamName
    resume: Resume


class Open(msgspec.Struct, frozen=True):
    """Ask for permission and for the log, then call `opened`. Empty: call it at once."""

    id: CommandId | None
    wishes: tuple[Opening, ...]
    refused: dict[str, TailraceError]


class Unread(msgspec.Struct, frozen=True):
    """Stop reading these, then send the payload."""

    streams: tuple[StreamName, ...]
    payload: bytes | None


class Append(msgspec.Struct, frozen=True):
    """Ask for permission and append, then answer with `appended` or an error."""

    id: CommandId | None
    stream: StreamName
    events: list[Event]


class Renew(msgspec.Struct, frozen=True):
    """Prove the token, then answer with `renewed` or an error."""

    id: CommandId | None
    token: str


class Count(msgspec.Struct, frozen=True):
    """Ask for permission and count the readers of a stream, then answer with `counted` or an error."""

    id: CommandId | None
    stream: StreamName


Action: TypeAlias = Say | End | Open | Unread | Append | Renew | Count | None


class Opened(msgspec.Struct, frozen=True):
    """Where the reading of a stream begins, and where the stream ends now."""

    cursor: EntryId
    head: EntryId


# -- the rate ----------------------------------------------------------------------------------------------


class Verdict(Enum):
    """What a `Meter` says to one more command."""

    PASS = 1
    REFUSE = 2
    CLOSE = 3


class Meter:
    """A bucket of a minute's commands that refills steadily."""

    def __init__(self, per_minute: int, now: float) -> None:
        self._size = float(per_minute)
        self._rate = per_minute / 60.0
        self._level = self._size
        self._at = now
        self._refused = 0

    def take(self, now: float) -> Verdict:
        """One more command at `now`."""
        self._level = min(self._size, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level >= 1.0:
            self._level -= 1.0
            self._refused = 0
            return Verdict.PASS
        self._refused += 1
        return Verdict.CLOSE if self._refused > STUBBORN else Verdict.REFUSE

    @property
    def wait_seconds(self) -> float:
        """Until the next command passes."""
        return max(0.0, (1.0 - self._level) / self._rate)


# -- the session -------------------------------------------------------------------------------------------


class Session:
    """See the rules above."""

    def __init__(self, options: SessionOptions, now: float) -> None:
        self._options = options
        self._meter = Meter(options.commands_per_minute, now)
        self._streams: dict[StreamName, Opening | None] = {}
        """None: reading."""
        self._pinged_at: float | None = None

    @property
    def streams(self) -> Collection[StreamName]:
        """What is opening or being read."""
        return self._streams.keys()

    # -- time ----------------------------------------------------------------------------------------------

    def pinged(self, now: float) -> None:
        """The server sent its `ping`."""
        if self._pinged_at is None:
            self._pinged_at = now

    def is_gone(self, now: float) -> bool:
        """Whether the client left a `ping` unanswered for too long."""
        return self._pinged_at is not None and now - self._pinged_at >= self._options.idle_seconds

    def forget_ended(self, reading: Collection[StreamName]) -> list[StreamName]:
        """Streams that ended by themselves are read no more and may be asked for again. Return them."""
        ended = [each for each, opening in self._streams.items() if opening is None and each not in reading]
        for stream in ended:
            del self._streams[stream]
        return ended

    # -- messages ------------------------------------------------------------------------------------------

    def on_message(self, text: str | bytes, cursors: Mapping[StreamName, EntryId], now: float) -> Action:
        """One message of the client, and what to do about it. `cursors`: what is being read, and how far."""
        asked, self._pinged_at = self._pinged_at is not None, None
        try:
            command = commands.decode_command(text)
        except Malformed as error:
            return self._limited(error.data.get("reply"), now) or Say(
                commands.error_reply(error.data.get("reply"), error)
            )
        if isinstance(command, commands.Pong) and asked:
            return None
        limited = self._limited(command.id, now)
        if limited is not None:
            return limited
        try:
            return self._obey(command, cursors)
        except RequestError as error:
            return Say(commands.error_reply(command.id, error))

    def _limited(self, id_: CommandId | None, now: float) -> Action:
        verdict = self._meter.take(now)
        if verdict is Verdict.PASS:
            return None
        if verdict is Verdict.CLOSE:
            return End(CloseCode.LIMITED, "too many commands")
        error = RateLimited(
            f"at most {self._options.commands_per_minute} commands a minute",
            retry_after=round(self._meter.wait_seconds, 3),
        )
        return Say(commands.error_reply(id_, error))

    def _obey(self, command: commands.Command, cursors: Mapping[StreamName, EntryId]) -> Action:
        match command:
            case commands.Subscribe():
                return self._subscribe(command)
            case commands.Unsubscribe():
                return self._unsubscribe(command)
            case commands.Publish():
                stream = StreamName.parse(command.stream)
                events = decode_events(bytes(command.events), "application/json", self._options.limits)
                return Append(command.id, stream, events)
            case commands.Ack():
                return self._ack(command, cursors)
            case commands.Presence():
                return Count(command.id, StreamName.parse(command.stream))
            case commands.Auth():
                return Renew(command.id, command.token)
            case commands.Ping() | commands.Pong():
                return _good(command.id)

    # -- reading -------------------------------------------------------------------------------------------

    def _subscribe(self, command: commands.Subscribe) -> Action:
        wishes: list[Opening] = []
        refused: dict[str, TailraceError] = {}
        for name, cursor in command.wanted.items():
            try:
                wishes.append(self._wish(name, cursor))
            except RequestError as error:
                refused[name] = error
        return Open(command.id, tuple(wishes), refused)

    def _wish(self, name: str, cursor: str) -> Opening:
        stream = StreamName.parse(name)
        if stream in self._streams:
            raise Conflict("this stream is being read; unsubscribe first", stream=stream)
        wish = Opening(stream, parse_resume(cursor))
        if len(self._streams) >= self._options.max_streams:
            raise TooLarge(
                f"at most {self._options.max_streams} streams on a connection", limit=self._options.max_streams
            )
        self._streams[stream] = wish
        return wish

    def is_wanted(self, wish: Opening) -> bool:
        """Whether the wish still stands, now that the log has answered."""
        return self._streams.get(wish.stream) is wish

    def opened(self, work: Open, outcomes: Mapping[StreamName, Opened | TailraceError]) -> bytes | None:
        """The log answered; what has an outcome is being read from now on. Return the reply."""
        taken: dict[str, Any] = {}
        refused = dict(work.refused)
        for wish in work.wishes:
            stream = wish.stream
            outcome = outcomes.get(stream)
            if not self.is_wanted(wish):
                refused[stream] = Conflict("unsubscribed before it began", stream=stream)
            elif isinstance(outcome, Opened):
                self._streams[stream] = None
                taken[stream] = {"cursor": str(outcome.cursor), "head": str(outcome.head)}
            else:
                del self._streams[stream]
                refused[stream] = outcome if outcome is not None else TailraceError()
        if not taken:
            return commands.error_reply(work.id, next(iter(refused.values())))
        if work.id is None and not refused:
            return None
        fields: dict[str, Any] = {"streams": taken}
        if refused:
            fields["refused"] = {name: commands.error_fields(error) for name, error in refused.items()}
        return commands.reply(work.id, fields)

    def _unsubscribe(self, command: commands.Unsubscribe) -> Action:
        streams = [StreamName.parse(name) for name in command.wanted]
        strangers = [stream for stream in streams if stream not in self._streams]
        if strangers:
            raise NotFound("this stream is not being read", stream=strangers[0])
        reading = tuple(stream for stream in dict.fromkeys(streams) if self._streams.pop(stream) is None)
        return Unread(reading, commands.reply(command.id) if command.id is not None else None)

    def denied(self, stream: StreamName) -> Unread | None:
        """The permission to read a stream was lost; the others go on."""
        if stream not in self._streams:
            return None
        del self._streams[stream]
        error = Forbidden("not allowed to read this stream any more", stream=stream)
        return Unread((stream,), commands.unsubscribed_payload(stream, error))

    # -- the rest ------------------------------------------------------------------------------------------

    def _ack(self, command: commands.Ack, cursors: Mapping[StreamName, EntryId]) -> Action:
        stream, done = StreamName.parse(command.stream), EntryId.parse(command.last_id)
        cursor = cursors.get(stream)
        if cursor is None:
            raise NotFound("this stream is not being read", stream=stream)
        if done > cursor:
            raise Conflict("this record was not delivered here", stream=stream, cursor=str(cursor))
        return _good(command.id, {"stream": stream, "unacknowledged": cursor.seq - done.seq})


def _good(id_: CommandId | None, fields: Mapping[str, Any] | None = None) -> Action:
    return Say(commands.reply(id_, fields)) if id_ is not None else None
