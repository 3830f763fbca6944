"""A proxy between a client and a server, which breaks what passes through it.

Addresses are a unix socket's path or a (host, port). Every fault can be switched while connections are open.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest_asyncio

__all__ = ["Proxy", "StartProxy"]

Address = str | tuple[str, int]


class Proxy:
    """Listens on a private unix socket, or on `port` of 127.0.0.1, and passes bytes to and from `target`.

    Attributes:
        latency: seconds that every answer is late.
        drop_replies: answers are read and thrown away; requests still arrive.
        black_hole: nothing passes in either direction; connections stay open.
        refuse: new connections are closed at once.
        reply_limit: after so many more answer bytes each connection is reset; None: never.
    """

    def __init__(self, target: Address, *, port: int = 0) -> None:
        self.target = target
        self.latency = 0.0
        self.drop_replies = False
        self.black_hole = False
        self.refuse = False
        self.reply_limit: int | None = None
        self.opened = 0
        """How many connections were made to the proxy."""
        self.dropped = 0
        """How many bytes of answers were thrown away."""
        self.on_request: Callable[[bytes], None] = lambda _: None
        """Called with each piece of a request before it is passed on."""
        self._port = port
        self._folder = tempfile.TemporaryDirectory(prefix="tr-px-", dir="/tmp")
        self.path = Path(self._folder.name) / "s"
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._light = asyncio.Event()

    @property
    def url(self) -> str:
        """For a Redis client."""
        return f"redis://127.0.0.1:{self._port}" if self._port else f"unix://{self.path}"

    async def start(self) -> Proxy:
        """Begin to listen."""
        if self._port:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        else:
            self._server = await asyncio.start_unix_server(self._accept, str(self.path))
        return self

    async def aclose(self) -> None:
        """End all connections and stop listening."""
        if self._server is not None:
            self._server.close()
        self.reset_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._folder.cleanup()

    def reset_all(self) -> None:
        """Cut every open connection."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def restore(self) -> None:
        """Let everything pass again; what a black hole held back goes on."""
        self.latency, self.drop_replies, self.black_hole, self.refuse = 0.0, False, False, False
        self.reply_limit = None
        self._light.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.opened += 1
        self._writers.add(writer)
        far: asyncio.StreamWriter | None = None
        try:
            if self.refuse:
                return
            back, far = await self._dial()
            self._writers.add(far)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, far, answers=False))
                group.create_task(self._pass(back, writer, answers=True))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, far):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()
            self._tasks.discard(task)

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.target, str):
            return await asyncio.open_unix_connection(self.target)
        return await asyncio.open_connection(*self.target)

    async def _pass(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, *, answers: bool) -> None:
        while data := await source.read(65_536):
            while self.black_hole:
                self._light.clear()
                await self._light.wait()
            if answers:
                if self.drop_replies:
                    self.dropped += len(data)
                    continue
                if self.latency:
                    await asyncio.sleep(self.latency)
                if self.reply_limit is not None:
                    self.reply_limit -= len(data)
                    if self.reply_limit < 0:
                        raise ConnectionResetError
            else:
                self.on_request(data)
            to.write(data)
            with contextlib.suppress(ConnectionError):
                await to.drain()
        raise ConnectionResetError


class StartProxy:
    """Makes proxies that end with the test."""

    def __init__(self) -> None:
        self.made: list[Proxy] = []

    async def __call__(self, target: Address, *, port: int = 0) -> Proxy:
        """Start a proxy."""
        proxy = Proxy(target, port=port)
        self.made.append(proxy)
        return await proxy.start()


@pytest_asyncio.fixture
async def start_proxy() -> AsyncIterator[StartProxy]:
    """`proxy = await start_proxy(str(server.socket))`."""
    start = StartProxy()
    yield start
    for proxy in start.made:
        await proxy.aclose()
