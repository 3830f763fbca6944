"""A real server in the test's own loop, and a client that shows every byte."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tailrace.config import Settings
from tailrace.server import GatewayServer, listener, make_server
from tests.support.wait import deadline

__all__ = ["Client", "Serving", "serving"]


class Serving:
    """A running server."""

    def __init__(self, server: GatewayServer, port: int) -> None:
        self.server = server
        self.port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[Client]:
        """A raw connection."""
        async with asyncio.timeout(5):
            client = await Client.open(self.port, **options)
        try:
            yield client
        finally:
            client.close()


@asynccontextmanager
async def serving(app: Any, *, drain: Callable[[], Any] | None = None, **settings: Any) -> AsyncIterator[Serving]:
    """Serve an ASGI application on a free port of 127.0.0.1 with tailrace's own server."""

    async def no_drain() -> None:
        return None

    started = asyncio.Event()
    given = await asyncio.to_thread(lambda: Settings(port=0, **settings))  # looks for a settings file
    sock = listener(given)
    server = make_server(app, given, drain or no_drain, started.set)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait((waiting, task), timeout=10, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done():
            task.result()
        yield Serving(server, sock.getsockname()[1])
    finally:
        server.should_exit = True
        server.force_exit = True
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        async with asyncio.timeout(10):
            await task


class Client:
    """One TCP connection, byte by byte."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = bytearray()

    @classmethod
    async def open(cls, port: int, *, receive_buffer: int | None = None) -> Client:
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(sock)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def get(self, target: str, *headers: str, version: str = "1.1", method: str = "GET") -> None:
        """Send a request head."""
        lines = [f"{method} {target} HTTP/{version}", "Host: test", *headers, "", ""]
        await self.send("\r\n".join(lines).encode())

    async def more(self) -> bytes:
        """The next bytes; empty at the end of the connection."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self.sock, 65_536)
        except ConnectionError:
            return b""
        self.received += data
        return data

    async def until(self, needle: bytes, seconds: float = 5.0) -> bytes:
        """Read until `needle` came; return everything up to and with it, and forget it."""
        async with deadline(seconds):
            while needle not in self.received:
                if not await self.more():
                    raise AssertionError(f"the connection ended before {needle!r}: {bytes(self.received)!r}")
        end = self.received.index(needle) + len(needle)
        found = bytes(self.received[:end])
        del self.received[:end]
        return found

    async def rest(self, seconds: float = 5.0) -> bytes:
        """Everything until the server ends the connection."""
        async with deadline(seconds):
            while await self.more():
                pass
        return bytes(self.received)

    def close(self) -> None:
        self.sock.close()
