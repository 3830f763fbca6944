"""A breakable link to Redis that can also keep its pushes to itself."""

from __future__ import annotations

import asyncio

from tests.support.proxy import Proxy

__all__ = ["Link"]


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
