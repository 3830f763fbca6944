"""A gateway behind a proxy that can fail, and commands that talk to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tailrace.client.client import Tailrace
from tailrace.client.direct import DirectLog
from tailrace.core.event import Record
from tailrace.eventlog.memory import MemoryLog
from tests.support.commands import Result, clean_environment, run_command
from tests.support.faulty import FaultyProxy, faulty_proxy
from tests.support.gateways import gateway_on, mint

Run: TypeAlias = Callable[..., Awaitable[Result]]
Stored: TypeAlias = Callable[[str], Awaitable[list[Record]]]


@pytest.fixture
async def log() -> AsyncIterator[MemoryLog]:
    made = MemoryLog()
    yield made
    await made.aclose()


@pytest.fixture
async def proxy(log: MemoryLog) -> AsyncIterator[FaultyProxy]:
    async with gateway_on(log) as (server, _), faulty_proxy(server.port) as made:
        yield made


@pytest.fixture
def environment(tmp_path: Path, proxy: FaultyProxy) -> dict[str, str]:
    return clean_environment(tmp_path, TAILRACE_URL=proxy.url, TAILRACE_TOKEN=mint(admin=True))


@pytest.fixture
def run(tmp_path: Path, environment: dict[str, str]) -> Run:
    """Run `tailrace …` in an empty folder, with a gateway and a token."""

    async def run(*arguments: str, env: dict[str, str] | None = None, **options: Any) -> Result:
        return await run_command(*arguments, cwd=tmp_path, env=environment | (env or {}), **options)

    return run


@pytest.fixture
def stored(log: MemoryLog) -> Stored:
    """What the log has of a stream."""

    async def stored(stream: str) -> list[Record]:
        async with Tailrace.on(DirectLog.on(log)) as client:
            return [item async for item in client.history(stream) if isinstance(item, Record)]

    return stored
