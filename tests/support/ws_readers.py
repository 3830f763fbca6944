"""Readers and writers over WebSocket and long-poll that lose their connection and come back, as real clients do."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tailrace.client.wire import decode_control, decode_record
from tailrace.core.event import Degraded, Ended, Gap, Item, Record
from tailrace.core.ids import EntryId

__all__ = ["PollReader", "SocketReader", "SocketWriter"]


class Reader:
    """What every reader remembers: items, and its cursor."""

    def __init__(self, stream: str, token: str) -> None:
        self.items: list[Item] = []
        self.cursor = "0"
        self.connects = 0
        self.degraded = 0
        self.ended = asyncio.Event()
        self.codes: list[int] = []
        self.headers = {"Authorization": f"Bearer {token}"}
        self.stream = stream

    @property
    def count(self) -> int:
        """Records so far."""
        return sum(isinstance(item, Record) for item in self.items)

    def take(self, message: bytes) -> None:
        """One message of the server."""
        body = json.loads(message)
        if "control" not in body:
            record = decode_record(message)
            self.items.append(record)
            self.cursor = str(record.id)
            return
        told = decode_control(message)
        if isinstance(told, Gap):
            self.items.append(told)
            self.cursor = str(told.cursor)
        elif isinstance(told, Degraded):
            self.degraded += told.active
        elif isinstance(told, Ended):
            self.ended.set()


class SocketReader(Reader):
    """Reads one stream by `…/ws`, or with `commands` by `/ws`."""

    def __init__(self, address: Callable[[str], str], stream: str, token: str, *, commands: bool = False) -> None:
        super().__init__(stream, token)
        self._address = address
        self._commands = commands
        self._socket: Any = None

    async def run(self) -> None:
        """Read until the stream ended."""
        while not self.ended.is_set():
            try:
                await self._connect()
            except ConnectionClosed as closed:
                self.codes.append(closed.rcvd.code if closed.rcvd is not None else 1006)
            except (OSError, TimeoutError, InvalidHandshake):
                pass
            await asyncio.sleep(random.uniform(0.01, 0.05))

    def cut(self) -> None:
        """Lose the connection, as a network does."""
        if self._socket is not None:
            self._socket.transport.abort()

    async def _connect(self) -> None:
        path = "/ws" if self._commands else f"/streams/{self.stream}/ws?last_id={self.cursor}"
        options: dict[str, Any] = {"additional_headers": self.headers, "ping_interval": None, "max_size": None}
        async with connect(self._address(path), **options) as self._socket:
            self.connects += 1
            if self._commands:
                subscribe = {"cmd": "subscribe", "stream": self.stream, "last_id": self.cursor}
                await self._socket.send(json.dumps(subscribe))
            while not self.ended.is_set():
                message = await self._socket.recv(decode=False)
                if b'"error"' in message[:40]:
                    return
                self.take(message)


class PollReader(Reader):
    """Reads one stream by long-poll."""

    def __init__(self, url: Callable[[], str], stream: str, token: str, *, limit: int = 1_000) -> None:
        super().__init__(stream, token)
        self._url = url
        self._limit = limit
        self._polling: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Poll until the stream ended."""
        async with httpx.AsyncClient(headers=self.headers, timeout=15, verify=False) as client:
            while not self.ended.is_set():
                self._polling = asyncio.create_task(self._poll(client))
                await asyncio.wait((self._polling,))
                if not self._polling.cancelled() and (error := self._polling.exception()) is not None:
                    if not isinstance(error, httpx.HTTPError):
                        raise error
                    await asyncio.sleep(0.02)

    def cut(self) -> None:
        """Give up the poll in the middle."""
        if self._polling is not None:
            self._polling.cancel()

    async def _poll(self, client: httpx.AsyncClient) -> None:
        query = {"stream": self.stream, "cursor": self.cursor, "timeout": "10", "limit": str(self._limit)}
        self.connects += 1
        answer = await client.get(f"{self._url()}/api/v1/events/poll", params=query)
        if answer.status_code == 503:
            await asyncio.sleep(0.05)
            return
        page = answer.raise_for_status().json()
        for gap in page["gaps"]:
            self.take(json.dumps(gap).encode())
        for event in page["events"]:
            self.take(json.dumps(event).encode())
        self.cursor = page["cursor"]
        if page["ended"]:
            self.ended.set()


class SocketWriter:
    """Publishes numbered events by `/ws`, each with its uid, one after the other, until each was acknowledged."""

    def __init__(self, address: Callable[[str], str], stream: str, token: str) -> None:
        self.acked: list[EntryId] = []
        self.refusals: list[str] = []
        self._address = address
        self._stream = stream
        self._headers = {"Authorization": f"Bearer {token}"}

    async def run(self, count: int, *, batch: int = 5) -> None:
        """Publish `count` batches."""
        done = 0
        while done < count:
            try:
                async with connect(
                    self._address("/ws"), additional_headers=self._headers, ping_interval=None, open_timeout=5
                ) as socket:
                    while done < count:
                        if await self._publish(socket, done, batch):
                            done += 1
                        else:
                            await asyncio.sleep(0.05)
            except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake):
                await asyncio.sleep(0.05)

    async def _publish(self, socket: Any, number: int, batch: int) -> bool:
        events = [{"type": "tick", "data": {"n": number}, "uid": f"{number}-{part}"} for part in range(batch)]
        command = {"cmd": "publish", "id": number, "stream": self._stream, "events": events}
        await socket.send(json.dumps(command))
        while True:
            message = json.loads(await socket.recv())
            if message.get("reply") == number:
                break
        if "error" in message:
            self.refusals.append(message["error"]["code"])
            assert message["error"]["status"] == 503, message
            return False
        self.acked += [EntryId.parse(event["id"]) for event in message["events"]]
        return True
