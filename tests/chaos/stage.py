"""A small arena: one stream, whole gateways in the test's own loop, a reader on every transport, the same judge.

For faults that are done by hand, step by step; nothing happens by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from pydantic import SecretStr

from tailrace.core.ids import EntryId
from tailrace.eventlog.redis.log import RedisLog
from tests.chaos.judge import Attempt, Board, Outcome, Violation, Walk, judge
from tests.chaos.load import PREFIX
from tests.chaos.readers import ClientReader, PollReader, Reader, SocketReader, SourceReader
from tests.chaos.truth import read_truth
from tests.chaos.wire import LOST
from tests.e2e.harness import SECRET, token
from tests.support.gateways import gateway_on
from tests.support.redis_servers import RedisServer
from tests.support.wait import eventually

__all__ = ["PATIENCE", "RUN", "Stage", "serve", "stage"]

RUN = "run:stage"
PATIENCE = 60.0
NOT_STORED = frozenset({"LOG_UNAVAILABLE", "LOG_TIMEOUT", "LOG_REFUSED"})


class Stage:
    """Readers that come and go, a publisher, and what they are owed."""

    def __init__(self) -> None:
        self.board = Board()
        self.readers: dict[str, list[Reader]] = {}
        self.codes: list[str] = []
        """The codes of the publishes that failed."""
        self.bearer = token("stage", read=["run:*"], write=["run:*"])
        self.headers = {"authorization": f"Bearer {self.bearer}"}
        self._http = httpx.AsyncClient(headers=self.headers, timeout=20)
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}
        self._number = 0

    def attend(self, group: str, url: str) -> None:
        """Have a reader of every transport read at a gateway; later the same ones come back there."""
        if group not in self.readers:
            self.readers[group] = [
                SourceReader(lambda: url, self._walk(group, "sse"), self.bearer),
                SocketReader(lambda: url, self._walk(group, "ws"), self.bearer),
                SocketReader(lambda: url, self._walk(group, "ws-many"), self.bearer, commands=True),
                PollReader(lambda: url, self._walk(group, "poll"), self.bearer),
                ClientReader(lambda: url, self._walk(group, "client-http"), self.bearer),
            ]
        self._tasks[group] = [asyncio.create_task(reader.run()) for reader in self.readers[group]]

    def _walk(self, group: str, transport: str) -> Walk:
        return Walk(self.board, f"{group}-{transport}", transport, [RUN])

    async def leave(self, group: str) -> None:
        """They lose their connections, and keep their cursors."""
        tasks = self._tasks.pop(group)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def publish(self, url: str, times: int = 1) -> list[Attempt]:
        """Publish events, each tried once."""
        attempts = []
        for _ in range(times):
            self._number += 1
            attempt = self.board.attempt("stage", RUN, f"stage/{self._number}")
            attempts.append(attempt)
            await self.repeat(url, attempt)
        return attempts

    async def repeat(self, url: str, attempt: Attempt) -> None:
        """Try an event, perhaps again; its uid says that it is the same one."""
        body = {"type": "test.step", "data": {"v": attempt.value, "s": RUN}, "uid": attempt.value}
        try:
            answer = await self._http.post(f"{url}/api/v1/streams/{RUN}/events", json=body)
        except LOST as error:
            self.codes.append(type(error).__name__)
            return
        if answer.status_code == 201:
            attempt.outcome = Outcome.ACKED
            attempt.id = _id(answer)
            return
        problem = answer.json()
        self.codes.append(problem["code"])
        if answer.status_code != 503 or "retry-after" not in answer.headers:
            self.board.complain("refused", "stage", RUN, answer.text[:200])
        if problem["code"] in NOT_STORED:
            attempt.outcome = Outcome.REFUSED

    async def works(self, url: str) -> None:
        """Publish until it is acknowledged; what a try left open is settled first, by its uid."""
        attempt: Attempt | None = None

        async def done() -> bool:
            nonlocal attempt
            if attempt is None or attempt.outcome is Outcome.REFUSED:
                (attempt,) = await self.publish(url)
            else:
                await self.repeat(url, attempt)
            return attempt.outcome is Outcome.ACKED

        failed = len(self.codes)
        await eventually(done, PATIENCE, every=0.1)
        del self.codes[failed:]

    async def caught_up(self, server: RedisServer, *groups: str) -> None:
        """Wait until readers have everything that a server holds."""
        head = (await read_truth(server, [RUN]))[RUN][-1].id
        walks = [reader.walk for group in groups or self.readers for reader in self.readers[group]]

        def all_there() -> bool:
            late = [walk.name for walk in walks if walk.positions[RUN] != head]
            assert not late, (str(head), late)
            return True

        await eventually(all_there, PATIENCE)

    def told(self, group: str) -> set[str]:
        """The transports of a group whose readers were told a gap."""
        return {reader.walk.transport for reader in self.readers[group] if reader.walk.gaps}

    def everybody(self, group: str) -> set[str]:
        """All transports of a group."""
        return {reader.walk.transport for reader in self.readers[group]}

    async def judged(self, server: RedisServer) -> list[Violation]:
        """What is wrong, when a server's history is the true one."""
        truth = await read_truth(server, [RUN])
        return judge(self.board, truth, [reader.walk for readers in self.readers.values() for reader in readers])

    async def aclose(self) -> None:
        """End all readers."""
        for group in tuple(self._tasks):
            await self.leave(group)
        await self._http.aclose()


def _id(answer: httpx.Response) -> EntryId:
    return EntryId.parse(answer.json()["events"][0]["id"])


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """A stage without anybody; ended afterwards."""
    made = Stage()
    try:
        yield made
    finally:
        await made.aclose()


@asynccontextmanager
async def serve(redis_url: str, *, deadline: float = 3.0) -> AsyncIterator[str]:
    """A gateway in this loop, as `tailrace serve` makes it; its address."""
    log = RedisLog.connect(redis_url, prefix=PREFIX, deadline=deadline)
    try:
        async with gateway_on(log, jwt_secret=SecretStr(SECRET), retry_min_seconds=0.02, retry_max_seconds=0.2) as (
            server,
            _,
        ):
            yield server.url
    finally:
        await log.aclose()
