"""Who asks, what for, and whether that is granted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Protocol

import msgspec

from tailrace.core.names import StreamName, escape_name
from tailrace.errors import InvalidStream, Unauthorized

__all__ = ["Action", "Authorizer", "GrantAuthorizer", "Grants", "Principal", "read_grants"]

SYSTEM = StreamName.parse("system:all")
MAX_PATTERNS = 256
_WHOLE_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}:\*", re.ASCII)


class Action(StrEnum):
    """What a principal wants to do with a stream."""

    READ = "read"
    """Live, history, long-poll and info."""
    WRITE = "write"
    CLOSE = "close"
    DELETE = "delete"


class Grants(msgspec.Struct, frozen=True):
    """The `tailrace` claim: patterns are an exact stream name or `kind:*`."""

    read: frozenset[str] = frozenset()
    write: frozenset[str] = frozenset()
    admin: bool = False


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody whose identity was proven."""

    sub: str
    """Who: a JWT's `sub`, or the name an embedding application gives."""
    grants: Grants = Grants()
    expires_at: float | None = None
    """Unix seconds after which this proof is worth nothing."""
    issued_at: float | None = None
    token_id: str | None = None
    """The token's `jti`, by which it can be revoked."""
    via: str = "token"
    """How it was proven: token, sse_token, cookie, or the embedding application's word."""

    @property
    def own_stream(self) -> StreamName:
        """The stream of this user, `user:<escaped sub>`."""
        return StreamName.parse(f"user:{escape_name(self.sub)}")


class Authorizer(Protocol):
    """Decides; asked for every request, and every few seconds again for what a live connection reads."""

    async def authorize(self, principal: Principal, action: Action, stream: StreamName) -> bool:
        """Whether `principal` may do this now. Raising an error of tailrace refuses with that error."""


class GrantAuthorizer:
    """Decides by the grants in the token; every user reads their own stream and `system:all`."""

    async def authorize(self, principal: Principal, action: Action, stream: StreamName) -> bool:
        """See `Authorizer`."""
        grants = principal.grants
        if grants.admin:
            return True
        if action is Action.READ:
            return stream == SYSTEM or stream == principal.own_stream or _matches(grants.read, stream)
        if action is Action.DELETE:
            return False
        return _matches(grants.write, stream)


def _matches(patterns: frozenset[str], stream: StreamName) -> bool:
    return str(stream) in patterns or f"{stream.kind}:*" in patterns


def read_grants(claims: Mapping[str, Any]) -> Grants:
    """Read the `tailrace` claim; without one nothing is granted.

    Raises:
        Unauthorized: the claim is there and not of its shape; a half-understood grant is no grant.
    """
    claim = claims.get("tailrace")
    if claim is None:
        return Grants()
    if not isinstance(claim, dict):
        raise Unauthorized("the token's tailrace claim is an object")
    admin = claim.get("admin", False)
    if not isinstance(admin, bool):
        raise Unauthorized("admin in the token's tailrace claim is true or false")
    return Grants(_patterns(claim, "read"), _patterns(claim, "write"), admin)


def _patterns(claim: Mapping[str, Any], name: str) -> frozenset[str]:
    patterns = claim.get(name, [])
    if not isinstance(patterns, list) or len(patterns) > MAX_PATTERNS:
        raise Unauthorized(f"{name} in the token's tailrace claim is a list of at most {MAX_PATTERNS} patterns")
    for pattern in patterns:
        if not isinstance(pattern, str) or (_WHOLE_KIND.fullmatch(pattern) is None and not _is_name(pattern)):
            raise Unauthorized(f"{name} in the token's tailrace claim holds what is no stream name and no kind:*")
    return frozenset(patterns)


def _is_name(text: str) -> bool:
    try:
        StreamName.parse(text)
    except InvalidStream:
        return False
    return True
