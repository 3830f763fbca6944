"""Breakable links: to Redis, which can keep its pushes to itself; to gateways, which can cut finely."""

from __future__ import annotations

import asyncio
import random

from tests.support.proxy import Proxy

__all__ = ["Edge", "Link"]


class Link(Proxy):
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


class Edge(Proxy):
    """A breakable link between clients and a gateway; see `Proxy`.

    Attributes:
        slices: the first bytes of each new connection's answers come in pieces of one to seven bytes.
    """

    slices: random.Random | None = None
    SLICED = 6_000
    """So many bytes; then a connection is as others, or a run would do nothing else."""

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
