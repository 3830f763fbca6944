"""From a request to a principal.

Rules of this file
1. One request proves itself in one way: the Authorization header, `?sse_token=` where a browser cannot send headers,
   a WebSocket subprotocol, or a cookie of our own origin. Two explicit proofs are refused.
2. A JWT is never taken from a URL, a short token never from a header: neither can stand in for the other.
3. A short token's text is nowhere but with its client: the store knows its hash.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

import msgspec
from starlette.requests import HTTPConnection

from tailrace.config import Settings
from tailrace.core.names import StreamName
from tailrace.errors import Forbidden, LogError, Malformed, Unauthorized
from tailrace.eventlog.leases import LeaseStore, TokenHold
from tailrace.web.origin import OriginPolicy
from tailrace.web.principal import Action, Authorizer, Principal
from tailrace.web.tokens import TokenVerifier

__all__ = [
    "BEARER_PREFIX",
    "SUBPROTOCOL",
    "Access",
    "Authenticate",
    "Identity",
    "Revocations",
    "chosen_subprotocol",
]

SUBPROTOCOL = "tailrace.v1"
"""What a WebSocket of ours speaks; offered beside the token, and the one that is accepted."""
BEARER_PREFIX = "tailrace.bearer."
"""A subprotocol `tailrace.bearer.<JWT>` carries the token where a browser can set no header."""
SSE_TOKEN = re.compile(r"st1_[A-Za-z0-9_-]{43}", re.ASCII)

Authenticate: TypeAlias = Callable[[HTTPConnection], Awaitable[Principal | None]]
"""An embedding application's own way to know who asks; None: it does not know."""


class Identity(msgspec.Struct, frozen=True):
    """Who asks, and the short token it was proven by."""

    principal: Principal
    token_key: str | None = None
    token_payload: bytes = b""
    replaced: str | None = None
    """The connection that held the token before."""


class Revocations:
    """What this process knows of revoked subjects and tokens; `refresh` keeps it up to date.

    It asks for what is newer than its last question, by the store's clock. Where that went back, as after a fail-over
    to a server whose clock is behind, it asks for everything.
    """

    OVERLAP_SECONDS = 10.0

    def __init__(self, store: LeaseStore) -> None:
        self._store = store
        self._revoked: dict[str, float] = {}
        self._since = 0.0
        self._ahead: float | None = None
        """How far the store's clock is ahead of ours, which never steps."""

    async def refresh(self) -> None:
        """Learn what is new. Raises: LogUnavailable."""
        asked = time.monotonic()
        found = await self._store.revocations(self._since)
        if self._ahead is not None and found.now - asked < self._ahead - self.OVERLAP_SECONDS / 2:
            found = await self._store.revocations(0.0)
        for name, at in found.names:
            self._revoked[name] = max(at, self._revoked.get(name, 0.0))
        self._since, self._ahead = found.now - self.OVERLAP_SECONDS, found.now - asked

    async def revoke(self, *, sub: str | None = None, token_id: str | None = None) -> None:
        """Make worthless what was issued to `sub` until now, or the token named `token_id`. Raises: LogUnavailable."""
        if sub is not None:
            await self._store.revoke(f"sub:{sub}")
        if token_id is not None:
            await self._store.revoke(f"jti:{token_id}")
        await self.refresh()

    def covers(self, principal: Principal) -> bool:
        """Whether this proof was revoked."""
        if not self._revoked:
            return False
        if principal.token_id is not None and f"jti:{principal.token_id}" in self._revoked:
            return True
        at = self._revoked.get(f"sub:{principal.sub}")
        return at is not None and (principal.issued_at is None or principal.issued_at <= at)


def chosen_subprotocol(connection: HTTPConnection) -> str | None:
    """The subprotocol to accept a WebSocket with: a browser that offered some insists on one of them."""
    return SUBPROTOCOL if SUBPROTOCOL in _offered(connection) else None


def _offered(connection: HTTPConnection) -> list[str]:
    lines = connection.headers.getlist("sec-websocket-protocol")
    return [part.strip() for line in lines for part in line.split(",")]


class Access:
    """Proves and decides for all routes."""

    def __init__(
        self,
        settings: Settings,
        store: LeaseStore,
        authorizer: Authorizer,
        origins: OriginPolicy,
        *,
        verifier: TokenVerifier | None = None,
        authenticate: Authenticate | None = None,
        clock: Callable[[], float] = time.time,
        on_failure: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.origins = origins
        self.authorizer = authorizer
        self.revocations = Revocations(store)
        self._settings = settings
        self._store = store
        self._verifier = verifier
        self._authenticate = authenticate
        self._clock = clock
        self._on_failure = on_failure

    # -- who -----------------------------------------------------------------------------------------------

    async def principal(self, connection: HTTPConnection) -> Principal:
        """Who sends a request that ends (no short tokens).

        Raises:
            Unauthorized, Forbidden, Malformed: nobody who was proven.
            LogUnavailable, KeysUnavailable: it cannot be found out now.
        """
        return (await self.identify(connection, holder=None)).principal

    async def identify(self, connection: HTTPConnection, *, holder: str | None) -> Identity:
        """Who opens a connection. `holder` names this connection and allows a short token, which it then holds.

        Raises: as `principal`.
        """
        try:
            identity = await self._identify(connection, holder)
            self.check_good(identity.principal)
            return identity
        except Unauthorized as error:
            self._on_failure(str(error.data.get("reason", "missing")))
            raise

    async def _identify(self, connection: HTTPConnection, holder: str | None) -> Identity:
        if connection.scope["type"] == "websocket":
            self.origins.check_websocket(connection)
        bearer = self._bearer(connection)
        short = connection.query_params.getlist("sse_token")
        if len(short) > 1 or (short and bearer is not None):
            raise Malformed("send one token, in one place")
        if bearer is not None:
            return Identity(await self._verify(bearer, "token"))
        if short:
            if holder is None:
                raise Unauthorized("an sse_token is accepted for SSE, WebSocket and long-poll", reason="place")
            return await self._claim(short[0], holder)
        return Identity(await self._ambient(connection))

    def _bearer(self, connection: HTTPConnection) -> str | None:
        headers = connection.headers.getlist("authorization")
        found = [part.removeprefix(BEARER_PREFIX) for part in _offered(connection) if part.startswith(BEARER_PREFIX)]
        for header in headers:
            scheme, _, token = header.partition(" ")
            if scheme.lower() != "bearer":
                # Basic and others belong to a proxy, or to the embedding application.
                continue
            found.append(token.strip())
        if len(found) > 1:
            raise Malformed("send one token, in one place")
        return found[0] if found else None

    async def _verify(self, token: str, via: str) -> Principal:
        if self._verifier is None:
            raise Unauthorized("tokens are not accepted here", reason="unconfigured")
        return msgspec.structs.replace(await self._verifier.verify(token), via=via)

    async def _ambient(self, connection: HTTPConnection) -> Principal:
        """What the browser sends by itself, or the application knows; for our own pages only."""
        if self._authenticate is not None:
            principal = await self._authenticate(connection)
            if principal is not None:
                if connection.headers.get("cookie"):
                    self.origins.check_cookie(connection)
                return msgspec.structs.replace(principal, via="application")
        name = self._settings.cookie_name
        token = connection.cookies.get(name) if name is not None else None
        if token is None:
            raise Unauthorized("a token is needed: Authorization: Bearer <token>")
        self.origins.check_cookie(connection)
        return await self._verify(token, "cookie")

    async def renew(self, principal: Principal, token: str) -> Principal:
        """Prove a newer token of the same user, sent over a connection that lives.

        Raises:
            Unauthorized: not a good token. Forbidden: somebody else's.
            LogUnavailable: it cannot be found out now.
        """
        newer = await self._verify(token, "token")
        self.check_good(newer)
        if newer.sub != principal.sub:
            raise Forbidden("the token is for another user")
        return newer

    def check_good(self, principal: Principal) -> None:
        """Raise Unauthorized where the proof ran out or was revoked."""
        if principal.expires_at is not None and principal.expires_at <= self._clock():
            raise Unauthorized("the token has expired", reason="expired")
        if principal.via != "application" and self.revocations.covers(principal):
            raise Unauthorized("the token was revoked", reason="revoked")

    # -- short tokens --------------------------------------------------------------------------------------

    def short_seconds(self, principal: Principal) -> float:
        """How long a short token of `principal` is good for its first use: never longer than what it is made from.

        Raises:
            Unauthorized: that has run out.
        """
        seconds = self._settings.sse_token_seconds
        if principal.expires_at is not None:
            seconds = min(seconds, principal.expires_at - self._clock())
        if seconds <= 0:
            raise Unauthorized("the token has expired", reason="expired")
        return seconds

    async def mint(self, principal: Principal) -> str:
        """Make a short token for what `principal` may do. Raises: LogUnavailable; as `short_seconds`."""
        token = f"st1_{secrets.token_urlsafe(32)}"
        if principal.via == "application" and principal.issued_at is None:
            # The application vouches for now: what was revoked before is no proof against it.
            principal = msgspec.structs.replace(principal, issued_at=self._clock())
        payload = msgspec.msgpack.encode(principal)
        await self._store.put_token(_token_key(token), payload, self.short_seconds(principal))
        return token

    async def _claim(self, token: str, holder: str) -> Identity:
        if SSE_TOKEN.fullmatch(token) is None:
            raise Unauthorized("not an sse_token", reason="shape")
        key = _token_key(token)
        claim = await self._store.claim_token(key, holder, self._settings.sse_token_kept_seconds)
        if claim is None:
            raise Unauthorized("the sse_token is unknown, or was not used in time", reason="expired")
        principal = msgspec.msgpack.decode(claim.payload, type=Principal)
        # The JWT behind it still sets the end, whatever the store's clock says.
        return Identity(msgspec.structs.replace(principal, via="sse_token"), key, claim.payload, claim.previous)

    async def give_back(self, identity: Identity, holder: str) -> None:
        """Leave a short token with the connection that has it: `holder`, which claimed it, was refused."""
        key, before, seconds = identity.token_key, identity.replaced, self._settings.sse_token_kept_seconds
        if key is None or before is None:
            return
        with suppress(LogError):
            # Unless somebody claimed it since: the newest connection has it.
            if all(await self._store.refresh_tokens([TokenHold(key, holder, identity.token_payload)], seconds)):
                await self._store.claim_token(key, before, seconds)

    # -- what ----------------------------------------------------------------------------------------------

    async def require(self, principal: Principal, action: Action, *streams: StreamName) -> None:
        """Let pass who may do this with all of these streams.

        Raises:
            Forbidden: the answer does not tell whether the stream exists.
        """
        for stream in streams:
            if not await self.authorizer.authorize(principal, action, stream):
                raise Forbidden(f"not allowed to {action.value} this stream", stream=stream)

    async def denied(self, principal: Principal, streams: tuple[StreamName, ...]) -> list[StreamName]:
        """The streams that a live reader may not read any more."""
        return [each for each in streams if not await self.authorizer.authorize(principal, Action.READ, each)]


def _token_key(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
