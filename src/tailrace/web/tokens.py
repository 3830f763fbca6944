"""JSON Web Tokens: signature, claims, and what they grant.

The signature is PyJWT's; the claims are checked here, with our clock, strictly by RFC 7519 and RFC 8725.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jwt
import msgspec
from jwt.types import Options

from tailrace.config import Settings
from tailrace.core.names import escape_name
from tailrace.errors import InvalidStream, Unauthorized
from tailrace.web.keys import KeySource, create_key_source
from tailrace.web.principal import Principal, read_grants

__all__ = ["TokenVerifier", "check_claims"]

MAX_TOKEN_BYTES = 8_192
MAX_SUB_CHARACTERS = 200
_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
REMEMBERED_SECONDS = 30.0
"""A token that was proven need not be proven again for this long; expiry and revocation are looked at every time."""
REMEMBERED_TOKENS = 4_096
_END_OF_TIME = 253_402_300_799  # 9999-12-31: beyond it a date library fails somewhere
_ONLY_SIGNATURE: Options = {
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
}


def check_claims(
    claims: Mapping[str, Any], *, now: float, leeway: float, issuer: str | None, audience: str | None
) -> Principal:
    """Turn the claims of a token with a good signature into who it is for.

    Raises:
        Unauthorized: a required claim is missing, a claim is malformed, or the token is not for here and now.
    """
    sub = claims.get("sub")
    if not isinstance(sub, str) or not 1 <= len(sub) <= MAX_SUB_CHARACTERS:
        raise Unauthorized("the token has no usable sub", reason="claims")
    try:
        escape_name(sub)
    except (InvalidStream, UnicodeEncodeError) as exc:
        raise Unauthorized("the token has no usable sub", reason="claims") from exc
    expires_at = _date(claims, "exp")
    if expires_at is None:
        raise Unauthorized("the token has no exp", reason="claims")
    if expires_at + leeway <= now:
        raise Unauthorized("the token has expired", reason="expired")
    for name in ("nbf", "iat"):
        date = _date(claims, name)
        if date is not None and date - leeway > now:
            raise Unauthorized("the token is not valid yet", reason="early")
    if issuer is not None and claims.get("iss") != issuer:
        raise Unauthorized("the token is from another issuer", reason="issuer")
    if audience is not None and audience not in _audiences(claims):
        raise Unauthorized("the token is for another audience", reason="audience")
    token_id = claims.get("jti")
    if token_id is not None and (not isinstance(token_id, str) or len(token_id) > MAX_SUB_CHARACTERS):
        raise Unauthorized("the token's jti is not a short text", reason="claims")
    return Principal(
        sub=sub,
        grants=read_grants(claims),
        expires_at=expires_at + leeway,
        issued_at=_date(claims, "iat"),
        token_id=token_id,
    )


def _date(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise Unauthorized(f"the token's {name} is not a number", reason="claims")
    if not 0 <= value <= _END_OF_TIME:
        raise Unauthorized(f"the token's {name} is out of range", reason="claims")
    return float(value)


def _audiences(claims: Mapping[str, Any]) -> list[object]:
    audience = claims.get("aud")
    return audience if isinstance(audience, list) else [audience]


class TokenVerifier:
    """Checks tokens against the settings' keys and claims."""

    def __init__(
        self, settings: Settings, keys: KeySource | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Raises: ConfigError when the settings hold no usable key."""
        self._keys = keys if keys is not None else create_key_source(settings)
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._leeway = settings.jwt_leeway_seconds
        self._clock = clock
        self._proven: dict[str, tuple[float, Principal]] = {}

    async def verify(self, token: str) -> Principal:
        """Prove who a token is for.

        Raises:
            Unauthorized: the token proves nothing here and now.
            KeysUnavailable: the keys cannot be had now.
        """
        now = self._clock()
        found = self._proven.get(token)
        if found is not None:
            until, principal = found
            if now < until and (principal.expires_at is None or now < principal.expires_at):
                return principal
            del self._proven[token]
        principal = await self._prove(token, now)
        if len(self._proven) >= REMEMBERED_TOKENS:
            del self._proven[next(iter(self._proven))]
        self._proven[token] = (now + REMEMBERED_SECONDS, principal)
        return principal

    async def _prove(self, token: str, now: float) -> Principal:
        algorithm, kid = _read_header(token)
        key = await self._keys.find(algorithm, kid)
        try:
            claims = jwt.decode(token, key.material, algorithms=[algorithm], options=_ONLY_SIGNATURE)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise Unauthorized("the token is not valid", reason="signature") from None
        return check_claims(claims, now=now, leeway=self._leeway, issuer=self._issuer, audience=self._audience)


def _read_header(token: str) -> tuple[str, str | None]:
    """The algorithm and key id a token names, as claims to be checked and nothing more."""
    if len(token) > MAX_TOKEN_BYTES or _SHAPE.fullmatch(token) is None:
        raise Unauthorized("not a token", reason="shape")
    try:
        header = msgspec.json.decode(jwt.utils.base64url_decode(token.partition(".")[0]))
    except (ValueError, RecursionError):
        raise Unauthorized("not a token", reason="shape") from None
    if not isinstance(header, dict):
        raise Unauthorized("not a token", reason="shape")
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or "crit" in header or header.get("b64", True) is not True:
        raise Unauthorized("the token's header is not accepted", reason="header")
    if "kid" in header and (not isinstance(kid, str) or not 1 <= len(kid) <= 256):
        raise Unauthorized("the token's header is not accepted", reason="header")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise Unauthorized("the token is of another kind", reason="header")
    return algorithm, kid
