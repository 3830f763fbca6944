"""WebSocket frames as a server writes them (RFC 6455 §5.2): whole messages, unmasked.

Only for writing the same bytes to many connections at once; what comes in is parsed by the server's own library.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["MAX_REASON_BYTES", "close_reason", "text_frame", "text_frames", "text_header"]

MAX_REASON_BYTES = 123
"""A control frame holds 125 bytes, and the close code takes two."""

_TEXT = 0x81
"""FIN and opcode 1: one whole text message."""


def text_header(length: int) -> bytes:
    """The header of a text message of `length` bytes."""
    if length < 126:
        return bytes((_TEXT, length))
    if length < 65_536:
        return b"\x81\x7e" + length.to_bytes(2, "big")
    return b"\x81\x7f" + length.to_bytes(8, "big")


def text_frame(payload: bytes) -> bytes:
    """One text message; the payload is UTF-8 already."""
    return text_header(len(payload)) + payload


def text_frames(payloads: Iterable[bytes]) -> bytes:
    """Several text messages, for one write."""
    return b"".join([text_header(len(payload)) + payload for payload in payloads])


def close_reason(text: str) -> str:
    """Shorten a reason so that it fits into a close frame."""
    return text.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
