"""Viewers of workflows as they were written before there were streams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.wait import deadline
from tests.support.ws import Gate, Wire

__all__ = ["PATH", "WAIT", "OldFrontEnd", "note", "viewer"]

PATH = "/streams/workflow:w1/ws"
WAIT = 60.0


class OldFrontEnd:
    """What was written before there were streams: reads JSON, and looks at `type`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.controls: list[Any] = []
        self.last_id: str | None = None

    async def get(self, seconds: float = WAIT) -> dict[str, Any]:
        """The next message that has a type."""
        async with deadline(seconds):
            while True:
                message: dict[str, Any] = await self._wire.get(seconds)
                if "type" in message or "control" not in message:
                    self.last_id = message.pop("id", self.last_id)
                    return message
                self.controls.append(message)

    async def numbers(self, count: int) -> list[int]:
        """The numbers of the next messages."""
        return [(await self.get())["n"] for _ in range(count)]

    async def told(self, control: str) -> Any:
        """The next control of a name; messages that come before it are an error."""
        while True:
            message = await self._wire.get(WAIT)
            assert "control" in message, message
            if message["control"] == control:
                return message


@asynccontextmanager
async def viewer(running: Gate, path: str = PATH, last_id: str | None = None) -> AsyncIterator[OldFrontEnd]:
    async with running.wire(
        path + (f"?last_id={last_id}" if last_id else ""), read=["workflow:*"], opened=False
    ) as wire:
        front = OldFrontEnd(wire)
        front.controls.append(await wire.get(WAIT))
        assert front.controls[0]["control"] == "open"
        yield front


def note(n: int) -> dict[str, Any]:
    return {"type": "node_output", "n": n}
