"""WebSocket frames as a server writes them (RFC 6455 §5.2): whole messages, unmasked.

Only for writing the same bytes to many connections at once; what comes in is parsed by the server's own library.
"""

from __future__ import annotations

__all__ = ["text_frame", "text_header"]

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
