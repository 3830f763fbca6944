"""Exit codes, after sysexits.h: what a script can rely on. One table for the help, the documentation and the code."""

from __future__ import annotations

from enum import IntEnum

from tailrace.errors import (
    ConfigError,
    Conflict,
    CursorExpired,
    DatabaseUnavailable,
    Forbidden,
    LogError,
    Malformed,
    NotFound,
    RateLimited,
    RequestError,
    RunExpired,
    TailraceError,
    TooLarge,
    Unauthorized,
    Unsupported,
)

__all__ = ["TABLE", "ExitCode", "exit_code_of"]


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    FAILED = 1
    USAGE = 2
    INVALID = 65
    NOT_FOUND = 66
    UNAVAILABLE = 69
    CONFLICT = 73
    TEMPORARY = 75
    REFUSED = 77
    CONFIG = 78
    EXEC_FAILED = 125
    EXEC_NOT_EXECUTABLE = 126
    EXEC_NOT_FOUND = 127
    INTERRUPTED = 130
    BROKEN_PIPE = 141


TABLE: tuple[tuple[ExitCode, str], ...] = (
    (ExitCode.OK, "done; for tail: every stream has ended"),
    (ExitCode.FAILED, "something else went wrong; doctor --strict: there are warnings"),
    (ExitCode.USAGE, "the command line cannot be understood"),
    (ExitCode.INVALID, "an event, stream name or cursor that is not accepted"),
    (ExitCode.NOT_FOUND, "no such stream or run, or it has expired"),
    (ExitCode.UNAVAILABLE, "the server, its log or its database does not answer"),
    (ExitCode.CONFLICT, "the stream is closed, or the uid was used with other data"),
    (ExitCode.TEMPORARY, "a limit was reached, or Redis is loading; try again later"),
    (
        ExitCode.REFUSED,
        "the token is missing, expired or does not grant it; doctor: the rights in Redis do not suffice",
    ),
    (ExitCode.CONFIG, "no server was found, a setting or the server's configuration cannot work"),
    (ExitCode.EXEC_FAILED, "exec: tailrace failed before the command could run"),
    (ExitCode.EXEC_NOT_EXECUTABLE, "exec: the command cannot be executed"),
    (ExitCode.EXEC_NOT_FOUND, "exec: there is no such command"),
    (ExitCode.INTERRUPTED, "interrupted (Ctrl-C); exec: 128 + the signal that ended the command"),
    (ExitCode.BROKEN_PIPE, "the reader of the output went away"),
)


def exit_code_of(error: TailraceError) -> ExitCode:
    """The exit code for an error that ends a command."""
    for kinds, code in (
        ((ConfigError, Unsupported), ExitCode.CONFIG),
        ((Unauthorized, Forbidden), ExitCode.REFUSED),
        ((NotFound, CursorExpired, RunExpired), ExitCode.NOT_FOUND),
        ((Conflict,), ExitCode.CONFLICT),
        ((RateLimited,), ExitCode.TEMPORARY),
        ((Malformed, TooLarge, RequestError), ExitCode.INVALID),
    ):
        if isinstance(error, kinds):
            return code
    away = isinstance(error, (LogError, DatabaseUnavailable)) and error.retryable
    return ExitCode.UNAVAILABLE if away else ExitCode.FAILED
