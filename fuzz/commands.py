"""No matter what a client says on a WebSocket: a command, or Malformed with its id; both can be answered."""

from __future__ import annotations

import json

from tailrace.core.commands import decode_command, error_reply, reply
from tailrace.errors import Malformed

__all__ = ["check"]


def check(data: bytes) -> None:
    """One message, as text and as bytes."""
    answer = answer_to(data)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        assert b'"error"' in answer
        return
    assert b'"error"' in answer_to(text) or answer_to(text) == answer


def answer_to(message: str | bytes) -> bytes:
    """What is said to it."""
    try:
        command = decode_command(message)
    except Malformed as error:
        told = error_reply(error.data["reply"], error)
        assert json.loads(told)["reply"] == error.data["reply"]
        assert json.loads(told)["error"]["status"] == 400
        return told
    told = reply(command.id)
    assert json.loads(told)["reply"] == command.id
    return told
