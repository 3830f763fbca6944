"""Close codes: the range tells a client what to do (PROTOCOL.md §8).

4000-4499 come back with your cursor. 4500-4999 stay away: the same request can only fail again.
The same number goes into the WebSocket close frame and into the SSE `stream.closed` and `stream.refused` events.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["CloseCode", "may_return"]


class CloseCode(IntEnum):
    """Why the server ended a connection or a subscription."""

    GOING_AWAY = 4000
    """The server is draining; another one, or this one in a moment, goes on from your cursor."""
    SLOW = 4001
    """Nothing was read for too long; the log still has what you missed."""
    TOKEN_EXPIRED = 4002
    """The token ran out; come back with a new one."""
    LOG_UNAVAILABLE = 4003
    """The log does not answer and the server gave up holding the connection."""
    LIMITED = 4004
    """A limit on connections or commands was reached; wait `retry_after` seconds."""
    INTERNAL = 4005
    """A defect of the server; your cursor is still good."""

    MALFORMED = 4500
    """A frame or command that cannot be understood."""
    UNAUTHORIZED = 4501
    """No valid token."""
    FORBIDDEN = 4502
    """The token does not grant this stream, or no longer does."""
    TOO_LARGE = 4503
    """A frame over the limit."""
    NOT_FOUND = 4504
    """No such stream or run."""
    REPLACED = 4505
    """A newer connection of the same user took this one's place."""
    EXPIRED = 4506
    """The stream is finished and gone."""
    ENDED = 4507
    """The stream was closed by its producer and you have all of it."""


def may_return(code: int) -> bool:
    """Whether a client that was closed with `code` should come back with its cursor."""
    return not 4500 <= code <= 4999
