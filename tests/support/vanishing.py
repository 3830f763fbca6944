"""A client on a network of its own, which can be cut off without a word: no FIN, no reset, no answer to anything.

The namespace is its process's and ends with it, however it ends, and with the namespace the link. A machine that may
not make one skips with the reason.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from tests.support.need import need_binary

__all__ = ["Faraway", "faraway"]

CLIENT = """
import json, socket, sys
print("here", flush=True)
target = json.loads(sys.stdin.readline())
held = []
for request, sign in target["requests"]:
    client = socket.create_connection((target["host"], target["port"]), 60)
    client.sendall(request.encode())
    seen = b""
    while sign.encode() not in seen:
        more = client.recv(65536)
        assert more, seen
        seen += more
    held.append(client)
print("open", flush=True)
sys.stdin.read()
"""


class Faraway:
    """See the module. `host` is where it finds this machine."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        number = process.pid % 16_384
        net, first = f"198.18.{number >> 6}", number << 2 & 252
        self.host, self._own = f"{net}.{first + 1}", f"{net}.{first + 2}"
        self._link = f"trv{number}"
        self._process = process

    async def connect(self) -> None:
        """Lay the link."""
        there = ("peer", "name", "far", "netns", str(self._process.pid))
        await _may("ip", "link", "add", self._link, "type", "veth", *there)
        await _run("ip", "addr", "add", f"{self.host}/30", "dev", self._link)
        await _run("ip", "link", "set", self._link, "up")
        await self._there("addr", "add", f"{self._own}/30", "dev", "far")
        await self._there("link", "set", "far", "up")

    async def open(self, port: int, requests: Sequence[tuple[bytes, str]]) -> None:
        """Have it send requests, each on a connection that it keeps, and wait until each was answered with a sign."""
        assert self._process.stdin is not None
        target = {"host": self.host, "port": port, "requests": [(each.decode(), sign) for each, sign in requests]}
        self._process.stdin.write(json.dumps(target).encode() + b"\n")
        await self.hears("open")

    async def vanish(self) -> None:
        """From now on nothing that it sends arrives; it is not told, and still runs."""
        await self._there("route", "add", "blackhole", f"{self.host}/32")

    @property
    def running(self) -> bool:
        """Whether it is still there."""
        return self._process.returncode is None

    async def hears(self, word: str) -> None:
        """Wait for what it says."""
        assert self._process.stdout is not None
        async with asyncio.timeout(60):
            assert (await self._process.stdout.readline()).decode().strip() == word

    async def _there(self, *arguments: str) -> None:
        await _run("nsenter", "-t", str(self._process.pid), "-n", "ip", *arguments)

    async def end(self) -> None:
        """End it; the namespace and the link go with it."""
        if self.running:
            self._process.kill()
        await self._process.wait()


async def _run(*argv: str) -> None:
    process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = await process.communicate()
    if process.returncode != 0:
        raise OSError(f"{' '.join(argv)}: {said.decode().strip()}")


async def _may(*argv: str) -> None:
    try:
        await _run(*argv)
    except OSError as error:
        pytest.skip(f"no network of one's own can be made on this machine: {error}")


@asynccontextmanager
async def faraway() -> AsyncIterator[Faraway]:
    """A client that is connected to this machine alone; ended afterwards."""
    for name, package in (("ip", "iproute2"), ("unshare", "util-linux"), ("nsenter", "util-linux")):
        need_binary(name, package)
    await _may("unshare", "-n", "true")
    # It ends when its input does, so also when this process is killed.
    argv = ["unshare", "-n", sys.executable, "-I", "-S", "-c", CLIENT]
    process = await asyncio.create_subprocess_exec(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    made = Faraway(process)
    try:
        await made.hears("here")
        await made.connect()
        yield made
    finally:
        await made.end()
