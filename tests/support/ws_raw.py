"""A WebSocket client that sends and sees every byte, for what no proper client would send."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.serving import Client
from tests.support.tokens import token
from tests.support.wait import deadline
from tests.support.ws import Gate

__all__ = ["RawSocket", "frame", "handshake", "raw_socket"]


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, rsv: int = 0) -> bytes:
    """One frame as a client writes it, or as it may not."""
    head = bytes(((0x80 if fin else 0) | rsv << 4 | opcode,))
    mask_bit = 0x80 if masked else 0
    if len(payload) < 126:
        head += bytes((mask_bit | len(payload),))
    elif len(payload) < 65_536:
        head += bytes((mask_bit | 126,)) + len(payload).to_bytes(2, "big")
    else:
        head += bytes((mask_bit | 127,)) + len(payload).to_bytes(8, "big")
    if not masked:
        return head + payload
    key = os.urandom(4)
    return head + key + bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))


def handshake(path: str, *headers: str) -> bytes:
    """A proper request for a WebSocket."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [f"GET {path} HTTP/1.1", "Host: test", "Connection: Upgrade", "Upgrade: websocket"]
    lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", *headers, "", ""]
    return "\r\n".join(lines).encode()


class RawSocket:
    """An open WebSocket, frame by frame."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def send(self, data: bytes) -> None:
        await self.client.send(data)

    async def _take(self, count: int) -> bytes:
        async with deadline(5.0):
            while len(self.client.received) < count:
                if not await self.client.more():
                    raise AssertionError(f"the connection ended in a frame: {bytes(self.client.received)!r}")
        taken = bytes(self.client.received[:count])
        del self.client.received[:count]
        return taken

    async def next(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame; all of the server's are whole and unmasked."""
        first, second = await self._take(2)
        assert first & 0x80, "a fragment"
        assert not second & 0x80, "a masked frame"
        assert not first & 0x70, "a reserved bit"
        size = second
        if size == 126:
            size = int.from_bytes(await self._take(2), "big")
        elif size == 127:
            size = int.from_bytes(await self._take(8), "big")
        return first & 0x0F, await self._take(size)

    async def until(self, opcode: int) -> bytes:
        """The payload of the next frame of a kind."""
        while True:
            found, payload = await self.next()
            if found == opcode:
                return payload

    async def close_code(self) -> int:
        """Read on to the close frame, and see that the connection ends behind it."""
        payload = await self.until(8)
        rest = await self.client.rest(10.0)
        assert rest == b"", f"bytes after the close frame: {rest!r}"
        return int.from_bytes(payload[:2], "big")


@asynccontextmanager
async def raw_socket(gate: Gate, path: str = "/ws") -> AsyncIterator[RawSocket]:
    """An open WebSocket of alice whose first message was read."""
    async with gate.server.client() as client:
        bearer = token(read=["run:*"], write=["run:*"])
        await client.send(handshake(f"/api/v1{path}", f"Authorization: Bearer {bearer}"))
        head = await client.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        assert b"sec-websocket-extensions" not in head.lower()
        socket = RawSocket(client)
        assert (await socket.next())[0] == 1
        yield socket
