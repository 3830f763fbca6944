"""Real gateways as processes, readers that behave like a browser's EventSource, publishers that never give up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from tailrace.core.event import Gap, GapReason, Item, Json, Record
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.core.sse import ServerEvent, SseParser
from tests.support.redis_servers import RedisServer, find_port
from tests.support.wait import eventually

__all__ = ["SECRET", "EventSource", "Gateway", "Publisher", "admin_token", "gateway", "stored_ids", "token"]

SECRET = "an-hmac-key-for-these-tests-of-enough-bytes"
MIN_PAUSE, MAX_PAUSE = 0.02, 0.5


def token(sub: str = "tester", *, read: list[str] | None = None, write: list[str] | None = None) -> str:
    """A token that these gateways accept."""
    import jwt

    claims = {"sub": sub, "exp": int(time.time()) + 86_400, "tailrace": {"read": read or [], "write": write or []}}
    return jwt.encode(claims, SECRET, algorithm="HS256")


def admin_token() -> str:
    """May read and write runs and tasks."""
    return token(read=["run:*", "task:*"], write=["run:*", "task:*"])


class Gateway:
    """`tailrace serve` in a process of its own; the same port through all of its lives."""

    def __init__(self, redis: RedisServer, prefix: str, folder: Path, **settings: str) -> None:
        self.port = find_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"gateway-{self.port}.log"
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TAILRACE_")},
            "TAILRACE_PORT": str(self.port),
            "TAILRACE_REDIS_URL": redis.url,
            "TAILRACE_KEY_PREFIX": prefix,
            "TAILRACE_JWT_SECRET": SECRET,
            "TAILRACE_DATA_DIR": str(folder / "data"),
            "TAILRACE_DRAIN_SECONDS": "1",
            "TAILRACE_RETRY_MIN_SECONDS": "0.02",
            "TAILRACE_RETRY_MAX_SECONDS": "0.2",
            "TAILRACE_MAX_CONNECTIONS_PER_USER": "0",
            **{f"TAILRACE_{name.upper()}": value for name, value in settings.items()},
        }

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self, *, ready: bool = True) -> Gateway:
        def spawn() -> subprocess.Popen[bytes]:
            with self.log.open("ab") as log:
                return subprocess.Popen(
                    [sys.executable, "-m", "tailrace", "serve"],
                    env=self._env,
                    cwd=self.folder,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                )

        self._process = await asyncio.to_thread(spawn)
        if ready:
            await self.wait_ready()
        return self

    async def wait_ready(self, seconds: float = 50.0) -> None:
        await self.wait_status("/readyz", 200, seconds)

    async def wait_status(self, path: str, status: int, seconds: float) -> None:
        """Wait until a path answers with a status."""
        async with httpx.AsyncClient(verify=False) as client:

            async def answers() -> bool:
                assert self._process is not None
                assert self._process.poll() is None, self.log.read_text()[-4_000:]
                with contextlib.suppress(httpx.HTTPError):
                    return (await client.get(self.url + path, timeout=2)).status_code == status
                return False

            await eventually(answers, seconds, every=0.05)

    async def kill(self) -> None:
        """kill -9."""
        await self._end(signal.SIGKILL, 5)

    async def stop(self, seconds: float = 10.0) -> int:
        """SIGTERM; the exit code."""
        return await self._end(signal.SIGTERM, seconds)

    async def _end(self, number: signal.Signals, seconds: float) -> int:
        process = self._process
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(number)
        try:
            return await asyncio.to_thread(process.wait, seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait, 5)
            raise AssertionError(
                f"still there {seconds} s after {number.name}: {self.log.read_text()[-4_000:]}"
            ) from None
        finally:
            self._process = None

    def complaints(self) -> list[str]:
        """Lines of the log that no good server writes."""
        if not self.log.exists():
            return []
        signs = ("Traceback", "never retrieved", "never awaited", "Exception in ASGI")
        return [line for line in self.log.read_text().splitlines() if any(sign in line for sign in signs)]


@asynccontextmanager
async def gateway(redis: RedisServer, prefix: str, folder: Path, **settings: str) -> AsyncIterator[Gateway]:
    """A gateway that is ready; ended afterwards, and its log held against it."""
    made = Gateway(redis, prefix, folder, **settings)
    try:
        yield await made.start()
    finally:
        await made._end(signal.SIGKILL, 5)
    assert made.complaints() == []


class EventSource:
    """Reads streams as a browser does: reconnects with `Last-Event-ID`, obeys `retry`, 204 and the close codes."""

    def __init__(self, url: str, *streams: str, token: str) -> None:
        self.items: list[Item] = []
        self.controls: list[str] = []
        self.connects = 0
        self.ended = asyncio.Event()
        self.last_event_id = ""
        self._host, _, port = url.removeprefix("http://").partition(":")
        self._port = int(port)
        self._target = "/api/v1/events/stream?" + "&".join(f"stream={stream}" for stream in streams)
        self._token = token
        self._retry = 0.1

    @property
    def records(self) -> list[Record]:
        return [item for item in self.items if isinstance(item, Record)]

    async def run(self) -> None:
        """Read until the server says that there is nothing more to come for."""
        while not self.ended.is_set():
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                await self._connect()
            if not self.ended.is_set():
                await asyncio.sleep(min(max(self._retry, MIN_PAUSE), MAX_PAUSE))

    async def _connect(self) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=16_777_216)
        try:
            head = f"GET {self._target} HTTP/1.1\r\nHost: {self._host}\r\nAccept: text/event-stream\r\n"
            head += f"Authorization: Bearer {self._token}\r\n"
            if self.last_event_id:
                head += f"Last-Event-ID: {self.last_event_id}\r\n"
            writer.write(head.encode() + b"\r\n")
            status = int((await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1])
            if status != 200:
                self.controls.append(f"status {status}")
                self.ended.set()
                return
            self.connects += 1
            await self._read(reader)
        finally:
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        parser = SseParser(last_event_id=self.last_event_id)
        while size := int(await reader.readuntil(b"\r\n"), 16):
            chunk = await reader.readexactly(size + 2)
            for event in parser.feed(chunk[:-2]):
                if isinstance(event, ServerEvent):
                    self.last_event_id = event.id
                    self._dispatch(event)
            if parser.retry_ms is not None:
                self._retry = parser.retry_ms / 1_000

    def _dispatch(self, event: ServerEvent) -> None:
        body = msgspec.json.decode(event.data)
        if not event.event.startswith("stream."):
            self.items.append(_record(body))
            return
        self.controls.append(event.event)
        if event.event == "stream.gap":
            self.items.append(_gap(body))
        if event.event in ("stream.closed", "stream.refused") and body["code"] >= 4_500 and "stream" not in body:
            self.ended.set()


def _record(body: dict[str, Any]) -> Record:
    return Record(
        stream=StreamName.parse(body["stream"]),
        id=EntryId.parse(body["id"]),
        prev=EntryId.parse(body["prev"]) if body["prev"] is not None else None,
        type=body["type"],
        data=Json(msgspec.json.encode(body["data"])),
        time=body["time"],
        uid=body.get("uid"),
    )


def _gap(body: dict[str, Any]) -> Gap:
    return Gap(
        stream=StreamName.parse(body["stream"]),
        after=EntryId.parse(body["after"]),
        before=EntryId.parse(body["before"]) if body["before"] else None,
        missed=body["missed"],
        reason=GapReason(body["reason"]),
        cursor=EntryId.parse(body["cursor"]),
    )


class Publisher:
    """Publishes numbered events one after the other, each with its uid, until each was acknowledged."""

    def __init__(self, url: str, stream: str, *, token: str, size: int = 100) -> None:
        self.acked: dict[str, EntryId] = {}
        self.failures = 0
        self._url = f"{url}/api/v1/streams/{stream}/events"
        self._headers = {"authorization": f"Bearer {token}"}
        self._size = size
        self._stop = asyncio.Event()

    async def run(self, name: str) -> None:
        """Publish until `stop`."""
        number = 0
        async with httpx.AsyncClient(headers=self._headers, timeout=8) as client:
            while not self._stop.is_set():
                number += 1
                await self._publish(client, f"{name}-{number}", number)

    async def _publish(self, client: httpx.AsyncClient, uid: str, number: int) -> None:
        body = {"type": "test.step", "data": {"n": number, "pad": "x" * self._size}, "uid": uid}
        while True:
            try:
                answer = await client.post(self._url, json=body)
            except httpx.HTTPError:
                answer = None
            if answer is not None and answer.status_code == 201:
                self.acked[uid] = EntryId.parse(answer.json()["events"][0]["id"])
                return
            assert answer is None or answer.status_code == 503, answer.text
            self.failures += 1
            await asyncio.sleep(0.05)

    def stop(self) -> None:
        self._stop.set()


async def stored_ids(redis: RedisServer, key: str) -> list[tuple[EntryId, str | None]]:
    """What Redis itself holds: ids and uids, in order."""
    entries = await redis.cli("XRANGE", key, "-", "+")
    found = []
    for id_, fields in entries:
        pairs = dict(zip(fields[::2], fields[1::2], strict=True))
        found.append((EntryId.parse(id_), pairs.get("uid")))
    return found
