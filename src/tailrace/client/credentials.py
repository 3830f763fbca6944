"""The caller's token: a fixed text, or a function that is asked for a new one when the old one runs out."""

from __future__ import annotations

import asyncio
import inspect
import time
from base64 import urlsafe_b64decode
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import msgspec

from tailrace.errors import ConfigError, LogUnavailable

__all__ = ["Credentials", "Token", "expiry_of"]

Token: TypeAlias = str | Callable[[], str | Awaitable[str]]
"""A JWT, or a function (async or not) that answers a fresh one."""

EARLY_SECONDS = 10.0
"""A token is renewed this long before it expires."""
ASK_SECONDS = 8.0
"""How long the function may take."""


class Credentials:
    """Holds one token and renews it, once for all who wait."""

    def __init__(self, token: Token | None, *, clock: Callable[[], float] = time.time) -> None:
        self._source = token if callable(token) else None
        self._current = token if isinstance(token, str) else None
        self._expires = expiry_of(self._current)
        self._clock = clock
        self._lock = asyncio.Lock()

    @property
    def renewable(self) -> bool:
        """Whether a refused token can be replaced."""
        return self._source is not None

    async def headers(self) -> dict[str, str]:
        """What to send, renewed if it is about to expire."""
        soon = self._expires is not None and self._clock() > self._expires - EARLY_SECONDS
        if self._source is not None and (self._current is None or soon):
            await self.renew(self._current)
        return {"authorization": f"Bearer {self._current}"} if self._current else {}

    async def renew(self, refused: str | None) -> None:
        """Ask for a new token, unless somebody replaced the refused one meanwhile.

        Raises:
            LogUnavailable: the function failed, or took too long: it may do later. ConfigError: it answered no token.
        """
        async with self._lock:
            if self._source is None or (self._current is not None and self._current != refused):
                return
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    answer = self._source()
                    fresh = await answer if inspect.isawaitable(answer) else answer
            except Exception as exc:  # whoever gives tokens is away: no reason to lose events, or to end
                raise LogUnavailable(f"the token function failed: {type(exc).__name__}", retry_after=1.0) from exc
            if not fresh or type(fresh) is not str:
                raise ConfigError("the token function answered no token")
            self._current = fresh
            self._expires = expiry_of(fresh)

    @property
    def current(self) -> str | None:
        """The token in use."""
        return self._current


def expiry_of(token: str | None) -> float | None:
    """When a JWT says it expires; None when it does not say or is no JWT. Nothing is verified: the server does."""
    parts = token.split(".") if token is not None else []
    if len(parts) != 3:
        return None
    try:
        claims = msgspec.json.decode(urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return float(claims["exp"])
    except (ValueError, KeyError, TypeError):
        return None
