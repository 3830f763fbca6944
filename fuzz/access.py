"""No matter what a request proves itself with: Unauthorized, Forbidden or Malformed; never a defect, never somebody."""

from __future__ import annotations

import asyncio

from pydantic import SecretStr
from starlette.requests import HTTPConnection

from tailrace.app import create_gateway
from tailrace.config import Settings
from tailrace.errors import Forbidden, Malformed, Unauthorized
from tailrace.eventlog.memory import MemoryLog
from tailrace.web.auth import Access

__all__ = ["check"]

HEADERS = [b"authorization", b"sec-websocket-protocol", b"cookie", b"origin", b"host", b"x-forwarded-for"]
_runner = asyncio.Runner()
_settings = Settings(
    jwt_secret=SecretStr("a-secret-of-fuzzing-with-more-than-32-bytes"), cookie_name="c", trusted_proxies=("1.1.1.1",)
)


async def _open() -> Access:
    return create_gateway(_settings, log=MemoryLog()).access


_access = _runner.run(_open())


def check(data: bytes) -> None:
    """A byte for the kind of request, the query, and a header a line: a byte for its name, then its value."""
    kind, lines = (data[0], data[1:].split(b"\n")) if data else (0, [b""])
    scope = {
        "type": "websocket" if kind % 2 else "http",
        "method": "GET",
        "scheme": "ws" if kind % 2 else "http",
        "path": "/",
        # No HTTP parser lets other bytes than ASCII into a target.
        "query_string": bytes(each & 0x7F for each in lines[0]),
        "headers": [(HEADERS[line[0] % len(HEADERS)], line[1:]) for line in lines[1:] if line],
        "client": ("1.1.1.1", 1),
        "server": ("test", 80),
    }
    try:
        _runner.run(_access.identify(HTTPConnection(scope), holder="fuzz" if kind & 2 else None))
    except (Unauthorized, Forbidden, Malformed):
        return
    raise AssertionError("somebody without a token")
