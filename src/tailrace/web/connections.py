"""Live connections: who may have how many, and what ends them.

Rules of this file
1. A lease is taken before the response begins and given back by whoever took it; one that never begins to stream is
   given back by the keeper. Whoever is killed leaves nothing: seats end by themselves in the store.
2. The store decides (atomically, for all gateways). While it does not answer, this process decides by what it knows,
   and readers stay served.
3. The keeper holds every lease against expiry, revocation, grants and the store every `recheck_seconds`. An authorizer
   that does not answer about one holds up neither the others nor what needs no authorizer.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from starlette.requests import HTTPConnection

from tailrace.codes import CloseCode
from tailrace.config import Settings
from tailrace.core.names import StreamName, escape_name
from tailrace.errors import LogError, Malformed, RateLimited, TailraceError, Unauthorized
from tailrace.eventlog.leases import Admission, LeaseStore, Seat, TokenHold, Verdict
from tailrace.web.auth import Access, Identity
from tailrace.web.origin import ClientAddress
from tailrace.web.principal import Principal

__all__ = ["Barred", "Connections", "Lease", "connection_name", "new_nonce"]

log = logging.getLogger("tailrace.connections")
T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
START_SECONDS = 30.0
"""A lease whose response did not begin by then is given back."""
CHUNK = 256
PARALLEL_CHECKS = 16
"""Leases about which the authorizer is asked at the same time."""
GRANT_SECONDS = 2.0
"""How long it may think about one of them: the next round asks again."""


class Barred(TailraceError):
    """This connection was replaced a short time ago: it is to stay away (204 to an EventSource)."""

    code = "REPLACED"
    status = 409
    close_code = CloseCode.REPLACED


def new_nonce() -> str:
    """A name for one connection."""
    return secrets.token_urlsafe(12)


def connection_name(connection: HTTPConnection) -> str | None:
    """What the client calls this connection (`?connection=`), the same whenever it comes back.

    Raises:
        Malformed: not 1-64 letters, digits, - and _.
    """
    names = connection.query_params.getlist("connection")
    if not names:
        return None
    if len(names) > 1 or _NAME.fullmatch(names[0]) is None:
        raise Malformed("connection is one name of 1-64 letters, digits, - and _", field="connection")
    return names[0]


class Lease:
    """One live connection's right to stay. Ends once, with the code the client is to be told."""

    def __init__(
        self, connections: Connections, identity: Identity, seats: tuple[Seat, ...], nonce: str, transport: str
    ) -> None:
        self.principal: Principal = identity.principal
        self.nonce = nonce
        self.transport = transport
        self.on_denied: Callable[[StreamName], None] | None = None
        """Called with a stream that may not be read any more; None: the whole connection ends with FORBIDDEN."""
        self.on_forgotten: Callable[[], None] = _nothing
        """Called when the response never began, to give back what waits for it."""
        self.ended: CloseCode | None = None
        self.started = False
        self._connections = connections
        self._identity = identity
        self._seats = seats
        self._streams: dict[StreamName, None] = {}
        self._callback: Callable[[CloseCode], None] | None = None
        self._waiting: asyncio.Future[CloseCode] | None = None
        self._taken_at = time.monotonic()

    @property
    def expires_at(self) -> float | None:
        """Unix seconds at which the proof behind this connection runs out."""
        return self.principal.expires_at

    @property
    def streams(self) -> tuple[StreamName, ...]:
        """What is watched for lost permissions."""
        return tuple(self._streams)

    def watch(self, *streams: StreamName) -> None:
        """Ask again and again whether these may be read."""
        self._streams.update(dict.fromkeys(streams))

    def unwatch(self, stream: StreamName) -> None:
        """Stop asking for a stream."""
        self._streams.pop(stream, None)

    def begin(self, on_end: Callable[[CloseCode], None] | None = None) -> None:
        """The connection begins to stream; `on_end` is called once when it has to end, at once if it had to before."""
        self.started = True
        self._callback = on_end
        if self.ended is not None and on_end is not None:
            on_end(self.ended)

    async def wait_ended(self) -> CloseCode:
        """Wait until the connection has to end."""
        if self.ended is not None:
            return self.ended
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._waiting)

    def end(self, code: CloseCode) -> None:
        """Let the connection end. The first call counts."""
        if self.ended is not None:
            return
        self.ended = code
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(code)
        if self._callback is not None:
            self._callback(code)

    def release(self) -> None:
        """Give the lease back. Never waits; twice is the same as once."""
        self._connections.release(self)

    # -- for the keeper ------------------------------------------------------------------------------------

    @property
    def seats(self) -> tuple[Seat, ...]:
        """The places it takes."""
        return self._seats

    @property
    def hold(self) -> TokenHold | None:
        """The short token it lives on."""
        if self._identity.token_key is None:
            return None
        return TokenHold(self._identity.token_key, self.nonce, self._identity.token_payload)

    @property
    def forgotten(self) -> bool:
        """Whether it was taken, but its response never began."""
        return not self.started and time.monotonic() - self._taken_at > START_SECONDS


class Connections:
    """All live connections of this process."""

    def __init__(self, settings: Settings, store: LeaseStore, access: Access, addresses: ClientAddress) -> None:
        self._settings = settings
        self._store = store
        self._access = access
        self._addresses = addresses
        self._leases: dict[str, Lease] = {}
        self._returned: list[Seat] = []
        self._wake = asyncio.Event()
        self._admitting = 0
        """How many wait for the store: they count, or those that come together would all be let in."""

    def __len__(self) -> int:
        return len(self._leases)

    def count_by_transport(self) -> dict[str, int]:
        """How many connections there are of each transport."""
        counts: dict[str, int] = {}
        for lease in self._leases.values():
            counts[lease.transport] = counts.get(lease.transport, 0) + 1
        return counts

    async def admit(
        self,
        connection: HTTPConnection,
        identity: Identity,
        *,
        nonce: str,
        transport: str,
        streams: Iterable[StreamName],
    ) -> Lease:
        """Take a lease for a connection, before its response begins.

        Raises:
            RateLimited: a limit is reached, and nobody has to go for this one.
            Barred: this connection was replaced by another a short time ago.
        """
        if len(self._leases) + self._admitting >= self._settings.max_connections:
            raise RateLimited("this server has as many connections as it takes", retry_after=5.0, limit_of="server")
        member = connection_name(connection) or identity.token_key or nonce
        taken: list[Seat] = []
        self._admitting += 1
        try:
            for seat, limit, evict in self._wanted(connection, identity.principal, member, nonce):
                await self._take(seat, limit, evict)
                taken.append(seat)
        except BaseException:
            self._give_back(taken)
            raise
        finally:
            self._admitting -= 1
        lease = Lease(self, identity, tuple(taken), nonce, transport)
        lease.watch(*streams)
        self._leases[nonce] = lease
        if identity.replaced is not None and identity.replaced != nonce:
            self._end((identity.replaced,), CloseCode.REPLACED)
        return lease

    def _wanted(
        self, connection: HTTPConnection, principal: Principal, member: str, nonce: str
    ) -> Iterable[tuple[Seat, int, bool]]:
        per_address, per_user = self._settings.max_connections_per_address, self._settings.max_connections_per_user
        if per_address and self._addresses.known:
            # Its own seat for each connection: an address is shared by strangers, who know no names of each other.
            yield Seat(f"a:{self._addresses.of(connection)}", nonce, nonce), per_address, False
        if per_user:
            evict = self._settings.connection_policy == "evict_oldest"
            yield Seat(f"u:{escape_name(principal.sub)}", member, nonce), per_user, evict

    async def _take(self, seat: Seat, limit: int, evict: bool) -> None:
        try:
            admission = await self._store.admit(seat, limit=limit, evict=evict)
        except LogError:
            admission = self._decide_alone(seat, limit)
        if admission.verdict is Verdict.REFUSED:
            raise RateLimited("too many connections", retry_after=10.0, limit=limit, limit_of=seat.group[:1])
        if admission.verdict is Verdict.BARRED:
            raise Barred("a newer connection took this one's place")
        self._end(admission.evicted, CloseCode.REPLACED)

    def _decide_alone(self, seat: Seat, limit: int) -> Admission:
        """Nobody has to go while it is not known who is where."""
        here = sum(any(each.group == seat.group for each in lease.seats) for lease in self._leases.values())
        return Admission(Verdict.ADMITTED if here < limit else Verdict.REFUSED)

    def _end(self, nonces: Iterable[str], code: CloseCode) -> None:
        for nonce in nonces:
            lease = self._leases.get(nonce)
            if lease is not None:
                lease.end(code)

    def release(self, lease: Lease) -> None:
        """The connection is gone."""
        if self._leases.pop(lease.nonce, None) is not None:
            self._give_back(lease.seats)

    def _give_back(self, seats: Iterable[Seat]) -> None:
        self._returned.extend(seats)
        self._wake.set()

    # -- the keeper ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the leases until cancelled; then give all of them back, briefly."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._return_seats(), name="seats")
                group.create_task(self._every(self._check_leases), name="leases")
                group.create_task(self._every(self._check_grants), name="grants")
        finally:
            seats = [*self._returned, *(seat for lease in self._leases.values() for seat in lease.seats)]
            await _briefly(self._store.release, seats)

    async def _return_seats(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            seats, self._returned = self._returned, []
            try:
                await self._store.release(seats)
            except LogError:
                log.debug("seats end by themselves", extra={"count": len(seats)})

    async def _every(self, check: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(self._settings.recheck_seconds)
            try:
                await check()
            except LogError as error:
                log.debug("leases cannot be refreshed", extra={"code": error.code})

    async def check(self) -> None:
        """Hold every lease against all that can end it. Raises: LogUnavailable; all but the store was asked."""
        await self._check_grants()
        await self._check_leases()

    async def _check_leases(self) -> None:
        """What needs no authorizer: expiry, revocation, the store."""
        unknown: LogError | None = None
        try:
            await self._access.revocations.refresh()
        except LogError as error:
            unknown = error
        worthless: list[str] = []
        for lease in list(self._leases.values()):
            if lease.forgotten:
                lease.on_forgotten()
                lease.release()
            elif lease.ended is None and not self._is_good(lease) and lease.hold is not None:
                worthless.append(lease.hold.key)
        await _briefly(self._store.drop_tokens, worthless)
        if unknown is not None:
            raise unknown
        await self._refresh()

    def _is_good(self, lease: Lease) -> bool:
        """Whether its proof still is; else it ends."""
        try:
            self._access.check_good(lease.principal)
        except Unauthorized as error:
            lease.end(CloseCode.TOKEN_EXPIRED if error.data.get("reason") == "expired" else CloseCode.UNAUTHORIZED)
        return lease.ended is None

    async def _check_grants(self) -> None:
        """Ask the authorizer about every lease, about several at a time."""
        waiting = iter([lease for lease in self._leases.values() if lease.ended is None])

        async def ask() -> None:
            for lease in waiting:
                await self._check_grant(lease)

        async with asyncio.TaskGroup() as group:
            for _ in range(PARALLEL_CHECKS):
                group.create_task(ask())

    async def _check_grant(self, lease: Lease) -> None:
        try:
            async with asyncio.timeout(GRANT_SECONDS):
                denied = await self._access.denied(lease.principal, lease.streams)
        except (TailraceError, TimeoutError) as error:
            # Who cannot be asked has not said no.
            log.warning("the authorizer does not answer", extra={"code": getattr(error, "code", "TIMEOUT")})
            return
        except Exception:
            # An embedding application's authorizer; its defect must not end everybody's connections.
            log.exception("the authorizer failed")
            return
        for stream in denied:
            lease.unwatch(stream)
            if lease.on_denied is not None:
                lease.on_denied(stream)
            else:
                lease.end(CloseCode.FORBIDDEN)

    async def _refresh(self) -> None:
        for part in _chunks([lease for lease in self._leases.values() if lease.ended is None]):
            # Those that left meanwhile are not asked for: their seats would be taken again.
            held = [(lease, seat) for lease in part for seat in lease.seats if lease.nonce in self._leases]
            for (lease, _), kept in zip(held, await self._store.refresh([seat for _, seat in held]), strict=True):
                if not kept:
                    lease.end(CloseCode.REPLACED)
            gone = [seat for lease, seat in held if lease.nonce not in self._leases]
            if gone:
                self._give_back(gone)
            await self._refresh_tokens([lease for lease in part if lease.nonce in self._leases])

    async def _refresh_tokens(self, leases: list[Lease]) -> None:
        holds = [(lease, hold) for lease in leases if (hold := lease.hold) is not None]
        kept_seconds = self._settings.sse_token_kept_seconds
        answers = await self._store.refresh_tokens([hold for _, hold in holds], kept_seconds)
        for (lease, _), kept in zip(holds, answers, strict=True):
            if not kept:
                lease.end(CloseCode.REPLACED)


def _chunks(entries: list[T]) -> Iterable[list[T]]:
    return (entries[start : start + CHUNK] for start in range(0, len(entries), CHUNK))


def _nothing() -> None:
    pass


async def _briefly(call: Callable[[list[T]], object], values: list[T]) -> None:
    """One best-effort call on the way out; what it would have given back ends by itself."""
    if not values:
        return
    try:
        async with asyncio.timeout(1.0):
            await call(values)  # type: ignore[misc]
    except (LogError, TimeoutError):
        pass
