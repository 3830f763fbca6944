"""Leases on Redis: every step is one script (lua/leases/), every key ends by itself.

    <prefix>seats:{<group>}     hash: who sits in a group (a user `u:…`, an address `a:…`)
    <prefix>evicted:{<group>}   zset: who was sent away a short time ago
    <prefix>short:{<hash>}      string: a short token, by the hash of its text
    <prefix>revoked             zset: what was revoked, and when

Each call is idempotent, so one that was cut off is sent again, within its deadline (calls.py). The leases of runs:
run_leases.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any

from tailrace.eventlog.leases import (
    BARRED_SECONDS,
    REVOCATION_SECONDS,
    SEAT_SECONDS,
    Admission,
    Revoked,
    Seat,
    TokenClaim,
    TokenHold,
    Verdict,
)
from tailrace.eventlog.redis.calls import Calls, load_script
from tailrace.eventlog.redis.run_leases import RedisRunLeases
from tailrace.eventlog.redis.topology import Topology, open_topology
from tailrace.eventlog.run_leases import RunLeases

__all__ = ["RedisLeases"]

for _name in ("admit", "claim", "hold", "refresh", "release", "revocations", "revoke"):
    load_script("leases", _name)  # at import, not in the event loop


class RedisLeases:
    """See `LeaseStore` (leases.py) for what every method promises."""

    def __init__(self, topology: Topology | str, *, prefix: str = "tailrace:") -> None:
        """Raises: ConfigError for a URL that cannot be used. Nothing is connected yet."""
        opened = open_topology(topology) if isinstance(topology, str) else topology
        self._prefix = prefix
        self._calls = Calls(opened, name="tailrace-leases", what="the store of leases")
        self.runs: RunLeases = RedisRunLeases(self._calls, prefix=prefix)

    async def aclose(self) -> None:
        """Give the connections back."""
        await self._calls.aclose()

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
        await self._calls.call(self._token_key(key), "SET", self._token_key(key), b"\n" + payload, "PX", _ms(seconds))

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
        await _all(self._calls.call(self._token_key(key), "DEL", self._token_key(key)) for key in keys)

    def _token_key(self, key: str) -> str:
        return f"{self._prefix}short:{{{key}}}"

    # -- revocations ------------------------------------------------------------------------------------------------

    async def revoke(self, name: str) -> None:
        """See `LeaseStore`."""
        await self._script("revoke", (self._revoked_key,), (name, int(REVOCATION_SECONDS)))

    async def revocations(self, since: float) -> Revoked:
        """See `LeaseStore`."""
        now, found = await self._script("revocations", (self._revoked_key,), (f"{since:.6f}",))
        return Revoked(
            [(name.decode(), float(at)) for name, at in zip(found[::2], found[1::2], strict=True)], float(now)
        )

    @property
    def _revoked_key(self) -> str:
        return f"{self._prefix}revoked"

    # -- calls ------------------------------------------------------------------------------------------------------

    async def _script(self, name: str, keys: Sequence[str], argv: Sequence[str | bytes | int]) -> Any:
        return await self._calls.script(load_script("leases", name), keys, argv)


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1_000))


async def _all(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Run the calls together: their commands leave in one write. The first error is raised when all have ended."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers
