"""Leases on Redis: every step is one script (lua/leases/), every key ends by itself.

    <prefix>seats:{<group>}     hash: who sits in a group (a user `u:…`, an address `a:…`)
    <prefix>evicted:{<group>}   zset: who was sent away a short time ago
    <prefix>short:{<hash>}      string: a short token, by the hash of its text
    <prefix>revoked             zset: what was revoked, and when

Rules of this file
1. Each call is idempotent, so one that was cut off is sent again, within its deadline.
2. The connections are of their own: a reader's seat never waits behind a publish.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from tailrace.errors import LogUnavailable
from tailrace.eventlog.leases import (
    BARRED_SECONDS,
    REVOCATION_SECONDS,
    SEAT_SECONDS,
    Admission,
    Seat,
    TokenClaim,
    TokenHold,
    Verdict,
)
from tailrace.eventlog.redis.connection import CommandFailed, Connection, ReplyError
from tailrace.eventlog.redis.endpoint import Endpoint
from tailrace.eventlog.redis.scripts import Script
from tailrace.eventlog.redis.topology import Topology, open_topology

__all__ = ["RedisLeases"]

CALL_SECONDS = 1.5
"""Overall deadline of one call."""
PAUSE_SECONDS = 0.05
_MOVING = frozenset({"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "READONLY", "LOADING"})


@cache
def _load(name: str) -> Script:
    text = (files("tailrace.eventlog.redis") / "lua" / "leases" / f"{name}.lua").read_bytes()
    return Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest())


for _name in ("admit", "claim", "hold", "refresh", "release", "revoke"):
    _load(_name)  # at import, not in the event loop


class RedisLeases:
    """See `LeaseStore` (leases.py) for what every method promises."""

    def __init__(self, topology: Topology | str, *, prefix: str = "tailrace:") -> None:
        """Raises: ConfigError for a URL that cannot be used. Nothing is connected yet."""
        self._topology = open_topology(topology) if isinstance(topology, str) else topology
        self._prefix = prefix
        self._connections: dict[Endpoint, Connection] = {}
        self._opening: dict[Endpoint, asyncio.Lock] = {}
        self._closed = False

    async def aclose(self) -> None:
        """Give the connections back."""
        self._closed = True
        connections, self._connections = list(self._connections.values()), {}
        for connection in connections:
            connection.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await asyncio.gather(*(asyncio.shield(each.closed) for each in connections), return_exceptions=True)

    # -- seats ------------------------------------------------------------------------------------------------------

    async def admit(self, seat: Seat, *, limit: int, evict: bool) -> Admission:
        """See `LeaseStore`."""
        argv = (seat.member, seat.nonce, limit, "1" if evict else "0", _ms(SEAT_SECONDS), _ms(BARRED_SECONDS))
        verdict, *evicted = await self._script("admit", self._group_keys(seat), argv)
        return Admission(Verdict(verdict.decode()), tuple(nonce.decode() for nonce in evicted))

    async def refresh(self, seats: Sequence[Seat]) -> list[bool]:
        """See `LeaseStore`."""
        return [bool(kept) for kept in await _all(self._refresh(seat) for seat in seats)]

    async def _refresh(self, seat: Seat) -> Any:
        return await self._script("refresh", self._group_keys(seat), (seat.member, seat.nonce, _ms(SEAT_SECONDS)))

    async def release(self, seats: Sequence[Seat]) -> None:
        """See `LeaseStore`."""
        await _all(self._script("release", self._group_keys(seat)[:1], (seat.member, seat.nonce)) for seat in seats)

    def _group_keys(self, seat: Seat) -> tuple[str, ...]:
        return f"{self._prefix}seats:{{{seat.group}}}", f"{self._prefix}evicted:{{{seat.group}}}"

    # -- short tokens -----------------------------------------------------------------------------------------------

    async def put_token(self, key: str, payload: bytes, seconds: float) -> None:
        """See `LeaseStore`."""
        await self._call(self._token_key(key), "SET", self._token_key(key), b"\n" + payload, "PX", _ms(seconds))

    async def claim_token(self, key: str, holder: str, kept_seconds: float) -> TokenClaim | None:
        """See `LeaseStore`."""
        found = await self._script("claim", (self._token_key(key),), (holder, _ms(kept_seconds)))
        return TokenClaim(found[0], found[1].decode() or None) if found is not None else None

    async def refresh_tokens(self, holds: Sequence[TokenHold], kept_seconds: float) -> list[bool]:
        """See `LeaseStore`."""
        answers = await _all(
            self._script("hold", (self._token_key(hold.key),), (hold.holder, _ms(kept_seconds), hold.payload))
            for hold in holds
        )
        return [bool(kept) for kept in answers]

    async def drop_tokens(self, keys: Sequence[str]) -> None:
        """See `LeaseStore`."""
        await _all(self._call(self._token_key(key), "DEL", self._token_key(key)) for key in keys)

    def _token_key(self, key: str) -> str:
        return f"{self._prefix}short:{{{key}}}"

    # -- revocations ------------------------------------------------------------------------------------------------

    async def revoke(self, name: str) -> None:
        """See `LeaseStore`."""
        await self._script("revoke", (self._revoked_key,), (name, int(REVOCATION_SECONDS)))

    async def revocations(self, since: float) -> list[tuple[str, float]]:
        """See `LeaseStore`."""
        reply = await self._call(
            self._revoked_key, "ZRANGEBYSCORE", self._revoked_key, f"{since:.6f}", "+inf", "WITHSCORES"
        )
        return [(name.decode(), float(at)) for name, at in zip(reply[::2], reply[1::2], strict=True)]

    @property
    def _revoked_key(self) -> str:
        return f"{self._prefix}revoked"

    # -- calls ------------------------------------------------------------------------------------------------------

    async def _script(self, name: str, keys: Sequence[str], argv: Sequence[str | bytes | int]) -> Any:
        script = _load(name)
        try:
            return await self._call(keys[0], "EVALSHA", script.sha, len(keys), *keys, *argv)
        except _NoScript:
            return await self._call(keys[0], "EVAL", script.text, len(keys), *keys, *argv)

    async def _call(self, key: str, *words: str | bytes | int) -> Any:
        """Send one idempotent command to the server that has the key, following it where it moves.

        Raises:
            LogUnavailable: no answer in time, or the server refuses.
        """
        deadline = asyncio.get_running_loop().time() + CALL_SECONDS
        asked: Endpoint | None = None
        while True:
            endpoint: Endpoint | None = None
            connection: Connection | None = None
            try:
                endpoint = asked or await self._topology.endpoint_for(self._topology.slot(key))
                connection = await self._connection(endpoint, deadline)
                return await connection.call(*words, deadline=deadline, asking=asked is not None)
            except ReplyError as exc:
                if exc.code == "NOSCRIPT":
                    raise _NoScript from None
                if exc.code not in _MOVING or endpoint is None:
                    raise LogUnavailable(f"the store of leases refused: {exc.code}") from exc
                target = self._topology.redirected(exc, endpoint)
                asked = target if exc.code == "ASK" else None
                last: LogUnavailable = LogUnavailable(f"the store of leases is moving: {exc.code}")
            except CommandFailed as exc:
                if connection is not None:
                    connection.abort()  # silent or gone; the next call finds out on a new one
                last, asked = exc, None
            except LogUnavailable as exc:
                if endpoint is not None:
                    self._topology.lost(endpoint)
                last, asked = exc, None
            if asyncio.get_running_loop().time() + PAUSE_SECONDS >= deadline or self._closed:
                raise last
            await asyncio.sleep(PAUSE_SECONDS)

    async def _connection(self, endpoint: Endpoint, deadline: float) -> Connection:
        lock = self._opening.setdefault(endpoint, asyncio.Lock())
        async with lock:
            connection = self._connections.get(endpoint)
            if connection is None or connection.closed.done():
                if self._closed:
                    raise LogUnavailable("the store of leases was closed")
                connection = await Connection.open(endpoint, deadline=deadline, name="tailrace-leases")
                self._connections[endpoint] = connection
            return connection


class _NoScript(Exception):
    """The server does not have the script (any more)."""


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1_000))


async def _all(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Run the calls together: their commands leave in one write. The first error is raised when all have ended."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers
