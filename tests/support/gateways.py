"""A gateway on a log in memory, on a free port, and tokens for it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
from pydantic import SecretStr

from tailrace.app import create_app, create_gateway
from tailrace.config import Settings
from tailrace.eventlog.base import Log
from tailrace.eventlog.memory import MemoryLog
from tests.support.serving import Serving, serving

__all__ = ["SECRET", "gateway_on", "mint"]

SECRET = "a secret for tests, of more than 32 bytes"


def mint(sub: str = "tester", *, ttl: float = 600.0, admin: bool = False, **grants: list[str]) -> str:
    """A token of the test's secret; without grants it may do everything with runs."""
    claim: dict[str, Any] = {"read": ["run:*"], "write": ["run:*"], "admin": admin, **grants}
    now = int(time.time())
    return jwt.encode({"sub": sub, "iat": now, "exp": int(now + ttl), "tailrace": claim}, SECRET, algorithm="HS256")


@asynccontextmanager
async def gateway_on(log: Log | None = None, **settings: Any) -> AsyncIterator[tuple[Serving, Log]]:
    """Serve a gateway in this loop."""
    made = log if log is not None else MemoryLog()
    options: dict[str, Any] = {
        "jwt_secret": SecretStr(SECRET),
        "heartbeat_seconds": 0.5,
        "runs_enabled": False,
        **settings,
    }
    gateway = create_gateway(Settings(**options), log=made)
    app = create_app(gateway=gateway)

    async def drain() -> None:
        await gateway.drain(0.0)

    async with serving(app, drain=drain, **options) as server:
        yield server, made
    if log is None:
        await made.aclose()
