"""Breakable links: to Redis, which can keep its pushes to itself; to gateways, which can cut finely."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Coroutine
from typing import Any

from tests.support.proxy import Address, Proxy

__all__ = ["Edge", "Link", "Network"]


class Network:
    """An event loop in a thread of its own, for all links of a run: a loop that is busy with thousands of records would
    delay every byte, and the calls of a run have deadlines."""

    def __init__(self) -> None:
        sys.setswitchinterval(0.001)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="chaos-network", daemon=True)
        self._thread.start()

    async def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something there, and wait for it."""
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    def close(self) -> None:
        """End the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class _Far(Proxy):
    """A proxy that lives in a network's thread. Its switches are set from anywhere."""

    def __init__(self, network: Network, target: Address, *, port: int = 0) -> None:
        super().__init__(target, port=port)
        self._network = network

    async def begin(self) -> None:
        """`start`, from the run's own loop."""

        async def work() -> None:
            await self.start()

        await self._network.do(work())

    async def end(self) -> None:
        """`aclose`, from the run's own loop."""
        await self._network.do(self.aclose())

    def reset_all(self) -> None:
        """See `Proxy`."""
        self._network.loop.call_soon_threadsafe(super().reset_all)

    def restore(self) -> None:
        """See `Proxy`."""
        self._network.loop.call_soon_threadsafe(super().restore)


class Link(_Far):
    """See `Proxy`.

    Attributes:
        mute_pushes: what Redis publishes is swallowed; everything else passes.
    """

    mute_pushes = False

    async def _pass(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, *, answers: bool) -> None:
        await super()._pass(source, _Mutable(self, to) if answers else to, answers=answers)  # type: ignore[arg-type]

    def restore(self) -> None:
        """See `Proxy`."""
        self.mute_pushes = False
        super().restore()


class _Mutable:
    """A writer that drops pushes while its link is mute."""

    def __init__(self, link: Link, to: asyncio.StreamWriter) -> None:
        self._link = link
        self._to = to

    def write(self, data: bytes) -> None:
        if not (self._link.mute_pushes and b"message\r\n" in data[:64]):
            self._to.write(data)

    async def drain(self) -> None:
        await self._to.drain()


class Edge(_Far):
    """A breakable link between clients and a gateway; see `Proxy`.

    Attributes:
        slices: the first bytes of each new connection's answers come in pieces of one to seven bytes.
    """

    slices: random.Random | None = None
    SLICED = 6_000
    """So many bytes; then a connection is as others, or a run would do nothing else."""

    @property
    def http_url(self) -> str:
        """Where it answers."""
        return self.url.replace("redis://", "http://")

    async def _pass(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, *, answers: bool) -> None:
        if answers and self.slices is not None:
            left, rng = self.SLICED, self.slices
            while left > 0:
                data = await source.read(left)
                if not data:
                    raise ConnectionResetError
                left -= len(data)
                while data:
                    size = rng.randint(1, 7)
                    to.write(data[:size])
                    data = data[size:]
                    await asyncio.sleep(0)
        await super()._pass(source, to, answers=answers)
