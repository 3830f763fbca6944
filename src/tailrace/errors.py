"""Every exception tailrace raises.

TailraceError                     code (stable) · status · close_code · retryable; data on attributes, text in str()
├─ UsageError                     the calling program broke the contract; never sent to a client
│   ├─ ConfigError · AlreadyClosed · WouldBlock
├─ RequestError                   the client did; safe to show
│   ├─ Malformed 400 · InvalidStream 400 · InvalidCursor 400
│   ├─ Unauthorized 401 · Forbidden 403 · NotFound 404: RunNotFound
│   ├─ Conflict 409: StreamClosed · Fenced · SequenceMismatch · IdempotencyConflict · RunEnded
│   ├─ CursorExpired 410 (only for a reader that asked for strict; otherwise a Gap is yielded) · RunExpired 410
│   └─ TooLarge 413 · UnsupportedMedia 415 · RequestTimeout 408 · RateLimited 429 (.retry_after)
├─ DatabaseUnavailable 503        SQL does not answer; not stored unless it says so
└─ LogError                       the store
    ├─ LogUnavailable 503         not stored; retryable
    │   ├─ LogTimeout 503         nothing was sent within the deadline
    │   └─ LogRefused 503         the store answered that it cannot write (out of memory, read-only, …)
    ├─ OutcomeUnknown 503         perhaps stored; retry with `.receipt` (or the same uid) and it is stored once
    ├─ Unsupported 501            this server cannot do it; says from which version on
    └─ CorruptRecord 500          an entry that claims to be ours and cannot be read
"""

from __future__ import annotations

from typing import Any, ClassVar

from tailrace.codes import CloseCode

__all__ = [
    "AlreadyClosed",
    "ConfigError",
    "Conflict",
    "CorruptRecord",
    "CursorExpired",
    "DatabaseUnavailable",
    "Fenced",
    "Forbidden",
    "IdempotencyConflict",
    "InvalidCursor",
    "InvalidStream",
    "LogError",
    "LogRefused",
    "LogTimeout",
    "LogUnavailable",
    "Malformed",
    "NotFound",
    "OutcomeUnknown",
    "RateLimited",
    "RequestError",
    "RequestTimeout",
    "RunEnded",
    "RunExpired",
    "RunNotFound",
    "SequenceMismatch",
    "StreamClosed",
    "TailraceError",
    "TooLarge",
    "Unauthorized",
    "Unsupported",
    "UnsupportedMedia",
    "UsageError",
    "WouldBlock",
]


class TailraceError(Exception):
    """Root of all errors raised by tailrace."""

    code: ClassVar[str] = "INTERNAL"
    """Stable upper-case name; on the wire as the problem's `code`."""
    status: ClassVar[int] = 500
    close_code: ClassVar[CloseCode] = CloseCode.INTERNAL
    retryable: ClassVar[bool] = False
    """Whether the same request may succeed later without being changed."""

    def __init__(self, detail: str = "", **data: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.data = data
        """Named facts for the problem document and the log; never secrets."""

    def __str__(self) -> str:
        return self.detail or self.code

    @property
    def shown(self) -> str:
        """The detail as a client may see it."""
        return self.detail


class UsageError(TailraceError):
    """The calling program broke the contract of the API."""


class ConfigError(UsageError):
    """A setting that cannot work; raised before anything starts."""

    code = "CONFIG"


class AlreadyClosed(UsageError):
    """The object was closed before."""

    code = "ALREADY_CLOSED"


class WouldBlock(UsageError):
    """An `_nowait` call that would have had to wait."""

    code = "WOULD_BLOCK"


class RequestError(TailraceError):
    """The request is wrong; the detail is safe to show to the client."""

    code = "BAD_REQUEST"
    status = 400
    close_code = CloseCode.MALFORMED


class Malformed(RequestError):
    """A body, event, parameter or command that cannot be understood."""

    code = "MALFORMED"


class InvalidStream(RequestError):
    """Not a stream name (PROTOCOL.md §2)."""

    code = "INVALID_STREAM"


class InvalidCursor(RequestError):
    """Not a cursor (PROTOCOL.md §4)."""

    code = "INVALID_CURSOR"


class Unauthorized(RequestError):
    """No token, or not a valid one."""

    code = "UNAUTHORIZED"
    status = 401
    close_code = CloseCode.UNAUTHORIZED


class Forbidden(RequestError):
    """The token does not grant this."""

    code = "FORBIDDEN"
    status = 403
    close_code = CloseCode.FORBIDDEN


class NotFound(RequestError):
    """There is nothing of that name."""

    code = "NOT_FOUND"
    status = 404
    close_code = CloseCode.NOT_FOUND


class RunNotFound(NotFound):
    """There is no such run."""

    code = "RUN_NOT_FOUND"


class Conflict(RequestError):
    """The request does not fit the stream's state."""

    code = "CONFLICT"
    status = 409


class StreamClosed(Conflict):
    """The stream was closed; nothing can be appended any more."""

    code = "STREAM_CLOSED"


class Fenced(Conflict):
    """The caller's lease on the stream was lost to another producer."""

    code = "FENCED"


class SequenceMismatch(Conflict):
    """Compare-and-append found another head (`data["seq"]`)."""

    code = "SEQUENCE_MISMATCH"


class IdempotencyConflict(Conflict):
    """The same uid was used before with another body."""

    code = "IDEMPOTENCY_CONFLICT"


class RunEnded(Conflict):
    """The run ended in another way before (`data["run_status"]`), and ended runs do not change."""

    code = "RUN_ENDED"


class CursorExpired(RequestError):
    """A strict reader's cursor is no longer in the stream (`data["oldest"]`)."""

    code = "CURSOR_EXPIRED"
    status = 410
    close_code = CloseCode.EXPIRED


class RunExpired(RequestError):
    """The run is finished and its events are gone."""

    code = "RUN_EXPIRED"
    status = 410
    close_code = CloseCode.EXPIRED


class TooLarge(RequestError):
    """Over a size limit (`data["limit"]`)."""

    code = "TOO_LARGE"
    status = 413
    close_code = CloseCode.TOO_LARGE


class UnsupportedMedia(RequestError):
    """A body of a content type that is not understood here."""

    code = "UNSUPPORTED_MEDIA_TYPE"
    status = 415


class RequestTimeout(RequestError):
    """The request's body was not complete in time."""

    code = "REQUEST_TIMEOUT"
    status = 408


class RateLimited(RequestError):
    """Over a rate or connection limit; wait `retry_after` seconds."""

    code = "RATE_LIMITED"
    status = 429
    close_code = CloseCode.LIMITED
    retryable = True

    def __init__(self, detail: str = "", *, retry_after: float = 1.0, **data: Any) -> None:
        super().__init__(detail, **data)
        self.retry_after = retry_after


class DatabaseUnavailable(TailraceError):
    """The SQL database does not answer. Nothing was stored unless `data["perhaps"]` is set."""

    code = "DATABASE_UNAVAILABLE"
    status = 503
    close_code = CloseCode.INTERNAL
    retryable = True

    def __init__(self, detail: str = "", *, retry_after: float = 1.0, **data: Any) -> None:
        super().__init__(detail, **data)
        self.retry_after = retry_after

    @property
    def shown(self) -> str:
        """Without the driver's reason, which names the server."""
        return self.detail.partition(": ")[0]


class LogError(TailraceError):
    """The log could not do it."""

    code = "LOG_ERROR"
    close_code = CloseCode.LOG_UNAVAILABLE


class LogUnavailable(LogError):
    """The log does not answer. For an append: nothing was stored."""

    code = "LOG_UNAVAILABLE"
    status = 503
    retryable = True

    def __init__(self, detail: str = "", *, retry_after: float = 1.0, **data: Any) -> None:
        super().__init__(detail, **data)
        self.retry_after = retry_after

    @property
    def shown(self) -> str:
        """What our side says, without which server it is and why: that is for the log of the gateway."""
        words = self.detail.partition(": ")[0]
        ours = words.startswith(("the log", "the server is", "the run", "too much"))
        return words if ours else "the log is not available"


class LogTimeout(LogUnavailable):
    """The deadline passed before anything was sent: nothing was stored."""

    code = "LOG_TIMEOUT"


class LogRefused(LogUnavailable):
    """The store answered that it cannot write now: nothing was stored."""

    code = "LOG_REFUSED"

    @property
    def shown(self) -> str:
        """With the store's own word, such as OOM or NOPERM."""
        return self.detail


class OutcomeUnknown(LogError):
    """The append was sent and its answer never came: perhaps stored.

    Retry by `log.retry(error.receipt)`, or by publishing again with the same `uid`: the event is then stored once.
    Publishing it anew without a uid may store it twice.
    """

    code = "OUTCOME_UNKNOWN"
    status = 503
    retryable = True

    def __init__(self, detail: str = "", *, receipt: object = None, retry_after: float = 1.0, **data: Any) -> None:
        super().__init__(detail, **data)
        self.receipt = receipt
        self.retry_after = retry_after

    @property
    def shown(self) -> str:
        """As of `LogUnavailable`."""
        return "the log did not say whether it stored the events"


class Unsupported(LogError):
    """This server's version or mode cannot do it."""

    code = "UNSUPPORTED"
    status = 501


class CorruptRecord(LogError):
    """An entry that claims to be ours and cannot be read (`data["stream"]`, `data["id"]`)."""

    code = "CORRUPT_RECORD"
