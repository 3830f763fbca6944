"""One suite for every log: in memory, and on each supported Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tailrace.core.ids import EntryId
from tailrace.core.kinds import Kinds, StreamKind
from tailrace.core.names import StreamName
from tailrace.eventlog.base import Log
from tailrace.eventlog.memory import MemoryLog
from tailrace.eventlog.redis.log import RedisLog
from tests.support.redis_servers import RedisServer

KINDS = Kinds(
    [
        StreamKind(name="run", max_length=200),
        StreamKind(name="short", idle_ttl_seconds=0.2),
        StreamKind(name="lasting", idle_ttl_seconds=1_000, closed_ttl_seconds=100),
        StreamKind(name="brief", closed_ttl_seconds=0.1),
        StreamKind(name="aged", max_age_seconds=0.05),
        StreamKind(name="small", max_event_bytes=100),
    ]
)


@dataclass
class Bench:
    """A log, and what others can do to its streams behind its back."""

    log: Log
    server: RedisServer | None
    prefix: str

    def events_key(self, stream: StreamName) -> str:
        """The stream's key."""
        return f"{self.prefix}{stream.kind}:{{{stream.name}}}:events"

    async def add_foreign(self, stream: StreamName, fields: Mapping[str, str], at: EntryId | None = None) -> EntryId:
        """A plain XADD by somebody else."""
        if self.server is None:
            assert isinstance(self.log, MemoryLog)
            return self.log.add_foreign(stream, fields, at=at)
        words = [word for pair in fields.items() for word in pair]
        where = "*" if at is None else str(at)
        return EntryId.parse(await self.server.cli("XADD", self.events_key(stream), where, *words))

    async def trim(self, stream: StreamName, length: int) -> None:
        """XTRIM by somebody else: only the newest stay."""
        if self.server is None:
            assert isinstance(self.log, MemoryLog)
            page = await self.log.range(stream, limit=1_000)
            self.log.drop(stream, *[record.id for record in page.records[: max(0, len(page.records) - length)]])
        else:
            await self.server.cli("XTRIM", self.events_key(stream), "MAXLEN", "=", length)

    async def drop(self, stream: StreamName, *entries: EntryId) -> None:
        """XDEL by somebody else."""
        if self.server is None:
            assert isinstance(self.log, MemoryLog)
            self.log.drop(stream, *entries)
        else:
            await self.server.cli("XDEL", self.events_key(stream), *map(str, entries))


@pytest_asyncio.fixture(params=["memory", "5.0", "6.2", "7.0"])
async def bench(request: pytest.FixtureRequest, key_prefix: str) -> AsyncIterator[Bench]:
    """Every implementation in turn."""
    if request.param == "memory":
        made = Bench(MemoryLog(kinds=KINDS), None, "")
    else:
        server: RedisServer = request.getfixturevalue(f"redis{request.param.replace('.', '')}")
        made = Bench(RedisLog.connect(server.url, kinds=KINDS, prefix=key_prefix), server, key_prefix)
    yield made
    await made.log.aclose()


@pytest.fixture
def log(bench: Bench) -> Log:
    """The log alone."""
    return bench.log
