"""The processes of a rehearsal: a Redis, gateways, publishers; and an old subscriber that listens to all of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from tailrace.cli.rehearse.ledger import Ledger, Sent
from tailrace.errors import LogUnavailable
from tailrace.eventlog.redis.pubsub import Channels, Listener

__all__ = ["OldSubscriber", "gateway", "old_subscriber", "publisher"]

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


@asynccontextmanager
async def gateway(url: str, folder: Path) -> AsyncIterator[None]:
    """A gateway process with its guards."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TAILRACE_")},
        "TAILRACE_REDIS_URL": url,
        "TAILRACE_PORT": "0",
        "TAILRACE_DATA_DIR": str(folder),
        "TAILRACE_JWT_SECRET": secrets.token_hex(32),
        "TAILRACE_DRAIN_SECONDS": "0.1",
    }
    with (folder / "gateway.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tailrace", "serve", env=environment, cwd=folder, stdout=log, stderr=log
        )
        try:
            yield
        finally:
            await _end(process)


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
