"""Leases: what several gateways must know of each other's connections, tokens and revocations.

Rules of this file
1. Everything here ends by itself: a holder that is killed leaves nothing behind longer than its lease.
2. Every step that decides is one atomic step of the store.
3. A store that lost its memory (FLUSHALL, a restart without persistence) is filled again by the holders' refreshes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Protocol

import msgspec

from tailrace.eventlog.run_leases import MemoryRunLeases, RunLeases

__all__ = ["Admission", "LeaseStore", "MemoryLeases", "Revoked", "Seat", "TokenClaim", "TokenHold", "Verdict"]

SEAT_SECONDS = 30.0
"""A connection that was not refreshed for this long is counted no more."""
BARRED_SECONDS = 600.0
"""An evicted member is told to stay away for this long."""
REVOCATION_SECONDS = 30 * 86_400.0
"""A revocation is remembered this long; no token may live longer to be covered."""


class Verdict(StrEnum):
    """The answer to a connection that wants a seat."""

    ADMITTED = "admitted"
    REFUSED = "refused"
    """The group is full and its policy is to refuse."""
    BARRED = "barred"
    """This member was evicted a short time ago, so that others could have its seat."""


class Seat(msgspec.Struct, frozen=True):
    """One connection's place in a group (a user, an address)."""

    group: str
    member: str
    """The connection as its client names it: a member that comes again takes its own seat."""
    nonce: str
    """This very connection."""


class Admission(msgspec.Struct, frozen=True):
    """What became of a request for a seat."""

    verdict: Verdict
    evicted: tuple[str, ...] = ()
    """Nonces of the connections that lost their seats for it."""


class Revoked(msgspec.Struct, frozen=True):
    """What was revoked."""

    names: list[tuple[str, float]]
    """Each name and when, Unix seconds, oldest first."""
    now: float
    """The store's clock. It may go back: after a fail-over another server's counts."""


class TokenHold(msgspec.Struct, frozen=True):
    """A connection that lives on a short token."""

    key: str
    holder: str
    payload: bytes


class TokenClaim(msgspec.Struct, frozen=True):
    """A short token that is good, and who had it before."""

    payload: bytes
    previous: str | None


class LeaseStore(Protocol):
    """Shared by all gateways of one installation.

    All calls may raise `LogUnavailable`.
    """

    runs: RunLeases
    """The leases of runs' producers."""

    async def admit(self, seat: Seat, *, limit: int, evict: bool) -> Admission:
        """Take a seat in a group of at most `limit`, the oldest one's when it is full and `evict`."""

    async def refresh(self, seats: Sequence[Seat]) -> list[bool]:
        """Keep the seats. False: another took it, the connection has to go. A forgotten seat is taken again."""

    async def release(self, seats: Sequence[Seat]) -> None:
        """Give seats back; those that others have by now stay theirs."""

    async def put_token(self, key: str, payload: bytes, seconds: float) -> None:
        """Remember a short token until its first use, at most `seconds`."""

    async def claim_token(self, key: str, holder: str, kept_seconds: float) -> TokenClaim | None:
        """Use a token: from now on `holder` has it. None: unknown, or not used in time."""

    async def refresh_tokens(self, holds: Sequence[TokenHold], kept_seconds: float) -> list[bool]:
        """Keep tokens for their holders. False: a newer connection has it."""

    async def drop_tokens(self, keys: Sequence[str]) -> None:
        """Forget tokens at once."""

    async def revoke(self, name: str) -> None:
        """Tell all gateways that what was issued to `name` until now is worth nothing."""

    async def revocations(self, since: float) -> Revoked:
        """What was revoked at or after `since` (Unix seconds)."""

    async def aclose(self) -> None:
        """Give the connections back."""


class _Taken(msgspec.Struct):
    nonce: str
    opened: float
    order: int
    expires: float


class _Token(msgspec.Struct):
    payload: bytes
    expires: float
    holder: str | None = None


class MemoryLeases:
    """The leases of one process, for tests and for a log in memory; the same promises as in Redis.

    Args:
        clock: by which everything ends. A jump of the wall clock must not free a seat, nor keep one for ever.
        wall: Unix seconds, for revocations only: they are compared with the times in tokens.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self.runs: RunLeases = MemoryRunLeases(clock=clock)
        self._groups: dict[str, dict[str, _Taken]] = {}
        self._barred: dict[tuple[str, str], float] = {}
        self._evicted: dict[str, float] = {}
        self._tokens: dict[str, _Token] = {}
        self._revoked: dict[str, float] = {}
        self._order = 0

    async def admit(self, seat: Seat, *, limit: int, evict: bool) -> Admission:
        """See `LeaseStore`."""
        now = self._collect()
        if (seat.group, seat.member) in self._barred:
            return Admission(Verdict.BARRED)
        group = self._groups.setdefault(seat.group, {})
        evicted: list[str] = []
        earlier = group.pop(seat.member, None)
        if earlier is not None and earlier.nonce != seat.nonce:
            evicted.append(self._evict(earlier, now))
        if limit > 0 and len(group) >= limit:
            if not evict:
                return Admission(Verdict.REFUSED)
            oldest = sorted(group, key=lambda member: group[member].order)
            for member in oldest[: len(group) - limit + 1]:
                evicted.append(self._evict(group.pop(member), now))
                self._barred[seat.group, member] = now + BARRED_SECONDS
        self._take(seat, now)
        return Admission(Verdict.ADMITTED, tuple(evicted))

    def _take(self, seat: Seat, now: float) -> None:
        self._order += 1
        taken = _Taken(seat.nonce, now, self._order, now + SEAT_SECONDS)
        self._groups.setdefault(seat.group, {})[seat.member] = taken

    def _evict(self, taken: _Taken, now: float) -> str:
        self._evicted[taken.nonce] = now + BARRED_SECONDS
        return taken.nonce

    def _collect(self) -> float:
        now = self._clock()
        for group in list(self._groups):
            seats = self._groups[group]
            for member in [member for member, taken in seats.items() if taken.expires <= now]:
                del seats[member]
            if not seats:
                del self._groups[group]
        _forget(self._barred, now)
        _forget(self._evicted, now)
        for key in [key for key, token in self._tokens.items() if token.expires <= now]:
            del self._tokens[key]
        return now

    async def refresh(self, seats: Sequence[Seat]) -> list[bool]:
        """See `LeaseStore`."""
        now = self._collect()
        return [self._refresh(seat, now) for seat in seats]

    def _refresh(self, seat: Seat, now: float) -> bool:
        if seat.nonce in self._evicted:
            return False
        taken = self._groups.get(seat.group, {}).get(seat.member)
        if taken is None:
            self._take(seat, now)
        elif taken.nonce != seat.nonce:
            return False
        else:
            taken.expires = now + SEAT_SECONDS
        return True

    async def release(self, seats: Sequence[Seat]) -> None:
        """See `LeaseStore`."""
        for seat in seats:
            taken = self._groups.get(seat.group, {}).get(seat.member)
            if taken is not None and taken.nonce == seat.nonce:
                del self._groups[seat.group][seat.member]

    async def put_token(self, key: str, payload: bytes, seconds: float) -> None:
        """See `LeaseStore`."""
        now = self._collect()
        self._tokens[key] = _Token(payload, now + seconds)

    async def claim_token(self, key: str, holder: str, kept_seconds: float) -> TokenClaim | None:
        """See `LeaseStore`."""
        now = self._collect()
        token = self._tokens.get(key)
        if token is None:
            return None
        previous, token.holder = token.holder, holder
        token.expires = now + kept_seconds
        return TokenClaim(token.payload, previous)

    async def refresh_tokens(self, holds: Sequence[TokenHold], kept_seconds: float) -> list[bool]:
        """See `LeaseStore`."""
        now = self._collect()
        for hold in holds:
            self._tokens.setdefault(hold.key, _Token(hold.payload, now, hold.holder))
        kept = [self._tokens[hold.key].holder == hold.holder for hold in holds]
        for hold, good in zip(holds, kept, strict=True):
            if good:
                self._tokens[hold.key].expires = now + kept_seconds
        return kept

    async def drop_tokens(self, keys: Sequence[str]) -> None:
        """See `LeaseStore`."""
        for key in keys:
            self._tokens.pop(key, None)

    async def revoke(self, name: str) -> None:
        """See `LeaseStore`."""
        now = self._wall()
        self._revoked = {each: at for each, at in self._revoked.items() if at > now - REVOCATION_SECONDS}
        self._revoked[name] = max(now, self._revoked.get(name, 0.0))

    async def revocations(self, since: float) -> Revoked:
        """See `LeaseStore`."""
        found = [(name, at) for name, at in self._revoked.items() if at >= since]
        return Revoked(sorted(found, key=lambda each: each[1]), self._wall())

    async def aclose(self) -> None:
        """See `LeaseStore`."""


def _forget(entries: dict[str, float] | dict[tuple[str, str], float], now: float) -> None:
    old = [key for key, until in entries.items() if until <= now]
    for key in old:
        del entries[key]  # type: ignore[arg-type]
