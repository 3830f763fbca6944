"""The processes of a rehearsal: a Redis, gateways, publishers; and an old subscriber that listens to all of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from tailrace.cli.rehearse.ledger import Ledger, Sent
from tailrace.cli.token import mint
from tailrace.errors import LogUnavailable
from tailrace.eventlog.redis.pubsub import Channels, Listener

__all__ = ["Gateway", "OldSubscriber", "Viewers", "gateway", "old_subscriber", "publisher", "viewers"]

READY_SECONDS = 60.0
_SENT = msgspec.json.Decoder(Sent)


class OldSubscriber:
    """Hears the old channels as subscribers always did."""

    def __init__(self) -> None:
        self.seen: dict[str, list[int]] = defaultdict(list)
        self.lost_link = False
        self._up = asyncio.Event()

    def heard(self, channel: bytes, message: bytes) -> None:
        """One message."""
        self.seen[channel.decode().removeprefix("workflow:")].append(msgspec.json.decode(message)["n"])

    def link(self, up: bool) -> None:
        """The connection is sound, or not."""
        self.lost_link = self.lost_link or (self._up.is_set() and not up)
        if up:
            self._up.set()

    async def wait_up(self) -> None:
        """Wait until it hears."""
        async with asyncio.timeout(READY_SECONDS):
            await self._up.wait()


@asynccontextmanager
async def old_subscriber(url: str) -> AsyncIterator[OldSubscriber]:
    """Listen while the body runs."""
    made, channels = OldSubscriber(), Channels(url)
    listener = Listener(
        channels, prefix="rehearsal:", on_message=made.heard, on_link=made.link, patterns=["workflow:*"]
    )
    task = asyncio.create_task(listener.run(), name="old subscriber")
    try:
        await made.wait_up()
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await channels.aclose()


@asynccontextmanager
async def publisher(url: str, name: str, ledger: Ledger, *, workflows: int, rate: float) -> AsyncIterator[None]:
    """A publishing process; what it says goes into the ledger. Ended and read to its last word on the way out."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tailrace.cli.rehearse.publisher", url, name, str(workflows), str(rate)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdin is not None  # noqa: S101, PT018 - pipes were asked for
    reading: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(READY_SECONDS):
            if (await process.stdout.readline()).strip() != b"ready":
                raise LogUnavailable(f"the publisher {name} does not start")
        reading = asyncio.create_task(_read(process.stdout, ledger))
        yield
        process.stdin.close()
        async with asyncio.timeout(READY_SECONDS):
            await reading
    finally:
        await _end(process)
        if reading is not None:
            reading.cancel()


async def _read(lines: asyncio.StreamReader, ledger: Ledger) -> None:
    while line := await lines.readline():
        ledger.add(_SENT.decode(line))


class Viewers:
    """Viewers of some workflows, on WebSockets of the gateway; told which way they see, they only read on."""

    def __init__(self) -> None:
        self.seen: dict[str, list[int]] = defaultdict(list)
        self.ended: list[str] = []
        """Connections that ended, and why: none should."""

    async def watch(self, gateway: Gateway, workflow: str, ready: asyncio.Event) -> None:
        """Read one workflow until cancelled."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed

        where = f"{gateway.url.replace('http', 'ws', 1)}/api/v1/streams/workflow:{workflow}/ws?last_id=0"
        async with connect(where, additional_headers={"Authorization": f"Bearer {gateway.token}"}) as socket:
            try:
                async for text in socket:
                    message = json.loads(text)
                    if "control" not in message:
                        self.seen[workflow].append(message["n"])
                    ready.set()
            except ConnectionClosed as exc:
                self.ended.append(f"{workflow}: {exc}")


@asynccontextmanager
async def viewers(gateway: Gateway, workflows: Sequence[str]) -> AsyncIterator[Viewers]:
    """Watch workflows while the body runs."""
    made, readies = Viewers(), [asyncio.Event() for _ in workflows]
    tasks = [
        asyncio.create_task(made.watch(gateway, workflow, ready), name=f"viewer {workflow}")
        for workflow, ready in zip(workflows, readies, strict=True)
    ]
    try:
        async with asyncio.timeout(READY_SECONDS):
            await asyncio.gather(*(ready.wait() for ready in readies))
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Gateway(NamedTuple):
    """A gateway that runs, and a token for it."""

    url: str
    token: str


@asynccontextmanager
async def gateway(url: str, folder: Path) -> AsyncIterator[Gateway]:
    """A gateway process with its guards; it takes viewers when the body begins."""
    secret, log_file = secrets.token_hex(32), folder / "gateway.log"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TAILRACE_")},
        "TAILRACE_REDIS_URL": url,
        "TAILRACE_PORT": "0",
        "TAILRACE_DATA_DIR": str(folder),
        "TAILRACE_JWT_SECRET": secret,
        "TAILRACE_WORKFLOW_MODE": "rollout",
        "TAILRACE_LOG_FORMAT": "json",
        "TAILRACE_MAX_CONNECTIONS_PER_USER": "0",
        "TAILRACE_DRAIN_SECONDS": "0.1",
    }
    with log_file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tailrace", "serve", env=environment, cwd=folder, stdout=log, stderr=log
        )
        try:
            yield Gateway(await _address(log_file), mint(secret, "rehearsal", {"read": ["workflow:*"]}, 86_400))
        finally:
            await _end(process)


async def _address(log_file: Path) -> str:
    """Where the gateway listens, as it says when it does."""
    async with asyncio.timeout(READY_SECONDS):
        while True:
            found = re.search(r'"address": "(http[^"]+)"', await asyncio.to_thread(log_file.read_text))
            if found is not None:
                return found[1]
            await asyncio.sleep(0.05)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    try:
        async with asyncio.timeout(10):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
