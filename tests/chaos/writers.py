"""Publishers that record what they were told, each a different way to the log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tailrace.core.event import Event
from tailrace.core.ids import EntryId
from tailrace.core.kinds import Kinds, StreamKind
from tailrace.core.names import StreamName
from tailrace.errors import LogUnavailable, OutcomeUnknown
from tailrace.eventlog.redis.log import RedisLog
from tests.chaos.judge import Attempt, Board, Outcome, parse_id
from tests.chaos.wire import LOST, Url, http_client

__all__ = ["LENGTHS", "HttpWriter", "KilledWriter", "LogWriter", "Writer", "kinds", "kinds_toml"]

ROOT = Path(__file__).parents[2]
LENGTHS = {"run": 50_000_000, "task": 400, "job": 50_000_000}
"""Of a run's streams: the `run` ones are never trimmed, so the log at its end is the whole truth; a `task` soon is."""
LIFE_SECONDS = 3_600.0
"""The `job` streams carry a life, so that a server with the wrong policy may evict them."""


def kinds(lengths: Mapping[str, int] = LENGTHS) -> Kinds:
    """The policies of a run, for publishers that are on Redis."""
    return Kinds(
        StreamKind(name=name, max_length=length, idle_ttl_seconds=LIFE_SECONDS if name == "job" else None)
        for name, length in lengths.items()
    )


def kinds_toml(lengths: Mapping[str, int] = LENGTHS) -> str:
    """The same for gateways."""
    lines = []
    for name, length in lengths.items():
        lines += [f"[kinds.{name}]", f"max_length = {length}"]
        lines += [f"idle_ttl_seconds = {LIFE_SECONDS}"] if name == "job" else []
    return "\n".join(lines) + "\n"


class Writer:
    """Publishes numbered events, `batch` at once, in turn to its streams, until it is told to stop."""

    def __init__(self, board: Board, name: str, streams: list[str]) -> None:
        self.board = board
        self.name = name
        self.streams = streams
        self.acked = 0
        self.failures = 0
        self.pause = self.usual_pause = 0.08
        self.batch = self.usual_batch = 1
        self.size = 120
        self.held = False
        """Whether it publishes only one event at a time, slowly: some reader is far behind."""
        self._number = 0
        self._turn = 0
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Publish until `stop`; what was begun is settled first."""
        while not self._stop.is_set():
            self._turn += 1
            stream = self.streams[self._turn % len(self.streams)]
            attempts = []
            for _ in range(1 if self.held else self.batch):
                self._number += 1
                attempts.append(self.board.attempt(self.name, stream, f"{self.name}/{self._number}"))
            ids = await self.settle(attempts, [self.body(attempt) for attempt in attempts])
            if not ids:
                self.board.count("publish", "unknown", len(attempts))
            for attempt, id_ in zip(attempts, ids, strict=bool(ids)):
                attempt.outcome, attempt.id = Outcome.ACKED, id_
                self.board.note("acknowledged", self.name, stream=stream, value=attempt.value, id=id_)
            self.acked += len(attempts)
            self.board.count("publish", "acknowledged", len(attempts))
            await asyncio.sleep(0.2 if self.held else random.uniform(0, 2 * self.pause))

    def burst(self, size: int, pause: float) -> None:
        """Publish larger events, one by one and faster, until `calm`."""
        self.size, self.pause, self.batch = size, pause, 1

    def calm(self) -> None:
        """Publish as usual."""
        self.size, self.pause, self.batch = 120, self.usual_pause, self.usual_batch

    def body(self, attempt: Attempt) -> dict[str, Any]:
        """The event's data: it says itself what and whose it is. A later life repeats it to the byte."""
        return {"v": attempt.value, "s": attempt.stream, "pad": "x" * (zlib.crc32(attempt.value.encode()) % self.size)}

    def failed(self) -> None:
        """Note an answer that was no acknowledgement."""
        self.failures += 1
        self.board.note("failed", self.name)
        self.board.count("publish", "failures")

    def stop(self) -> None:
        """End after the event that is under way."""
        self._stop.set()

    async def settle(self, attempts: Sequence[Attempt], data: Sequence[dict[str, Any]]) -> list[EntryId]:
        """Publish in one call until it is acknowledged. Empty: nobody can say any more whether it is stored."""
        raise NotImplementedError


class HttpWriter(Writer):
    """Publishes through any gateway, with a uid. `named=False` is how it must not be done: retries without one."""

    def __init__(
        self, board: Board, name: str, streams: list[str], *, url: Url, token: str, named: bool = True
    ) -> None:
        super().__init__(board, name, streams)
        self._url = url
        self._named = named
        self._client = http_client(token, timeout=8)

    async def run(self) -> None:
        """See `Writer`."""
        async with self._client:
            await super().run()

    async def settle(self, attempts: Sequence[Attempt], data: Sequence[dict[str, Any]]) -> list[EntryId]:
        """See `Writer`. One event as it is, several as an array or as NDJSON."""
        stream = attempts[0].stream
        events = [
            {"type": "test.step", "data": each} | ({"uid": attempt.value} if self._named else {})
            for attempt, each in zip(attempts, data, strict=True)
        ]
        content, type_ = json.dumps(events if len(events) > 1 else events[0]), "application/json"
        if len(events) > 1 and self._turn % 4 > 1:
            content, type_ = "\n".join(map(json.dumps, events)), "application/x-ndjson"
        while True:
            with contextlib.suppress(*LOST):
                answer = await self._client.post(
                    f"{self._url()}/api/v1/streams/{stream}/events", content=content, headers={"content-type": type_}
                )
                if answer.status_code == 201:
                    return [parse_id(each["id"]) for each in answer.json()["events"]]
                if answer.status_code != 503:
                    self.board.complain("refused", self.name, stream, answer.text[:200])
            self.failed()
            await asyncio.sleep(random.uniform(0.02, 0.2))


class LogWriter(Writer):
    """Publishes straight on Redis without a uid: an unknown outcome is settled by its receipt.

    A stream remembers 64 producers. When many came and went while a receipt was tried, nobody knows it any more: what
    it stands for is stored once or never, and the publisher goes on.
    """

    TRIES = 60

    def __init__(
        self,
        board: Board,
        name: str,
        streams: list[str],
        *,
        url: str,
        key_prefix: str,
        lengths: Mapping[str, int] = LENGTHS,
    ) -> None:
        super().__init__(board, name, streams)
        self._log = RedisLog.connect(url, prefix=key_prefix, kinds=kinds(lengths), deadline=2.0)

    async def run(self) -> None:
        """See `Writer`."""
        try:
            await super().run()
        finally:
            await self._log.aclose()

    async def settle(self, attempts: Sequence[Attempt], data: Sequence[dict[str, Any]]) -> list[EntryId]:
        """See `Writer`."""
        receipt: object = None
        tries = 0
        stream = StreamName.parse(attempts[0].stream)
        events = [Event("test.step", each) for each in data]
        while True:
            try:
                if receipt is not None:
                    return [answer.id for answer in await self._log.retry(receipt)]
                return [answer.id for answer in await self._log.append(stream, events)]
            except OutcomeUnknown as unknown:
                tries += receipt is not None
                receipt = unknown.receipt
                if tries >= self.TRIES:
                    return []
            except LogUnavailable:
                pass
            self.failed()
            await asyncio.sleep(random.uniform(0.02, 0.2))


class KilledWriter(Writer):
    """A publisher process that is killed between request and answer, and started again.

    Over HTTP it has uids, and its next life repeats what the last one did not see acknowledged. On Redis it has none:
    what was under way stays open, stored once or never.
    """

    def __init__(self, board: Board, name: str, stream: str, *, target: tuple[str, ...], repeats: bool) -> None:
        super().__init__(board, name, [stream])
        self._target = target
        self._repeats = repeats
        self._process: asyncio.subprocess.Process | None = None
        self._open: Attempt | None = None
        self.lives = 0

    async def run(self) -> None:
        """See `Writer`."""
        try:
            while not self._stop.is_set():
                await self._live()
        finally:
            self.kill()

    async def _live(self) -> None:
        first = self._number + 1
        if self._repeats and self._open is not None:
            first = self._number
        else:
            self._open = None
        self.lives += 1
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.chaos.writing", *self._target, self.streams[0], self.name, str(first)),
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"},
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        try:
            while line := await self._process.stdout.readline():
                self._said(line.decode().split())
        finally:
            self.kill()
            await self._process.wait()

    def _said(self, words: list[str]) -> None:
        if words[0] == "try":
            self._number = int(words[1])
            if self._open is None:
                self._open = self.board.attempt(self.name, self.streams[0], f"{self.name}/{self._number}")
        elif words[0] == "failed":
            self.failed()
        elif words[0] == "broken":
            self.board.complain("refused", self.name, self.streams[0], " ".join(words[1:]))
        elif words[0] == "acked":
            assert self._open is not None
            self._open.outcome, self._open.id = Outcome.ACKED, parse_id(words[1])
            self.board.note("acknowledged", self.name, value=self._open.value, id=self._open.id)
            self._open = None
            self.acked += 1
            self.board.count("publish", "acknowledged")

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                # Its own `kill` would reap a process that just ended, under the eyes of the loop's watcher.
                os.kill(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """See `Writer`. Its process ends when its input does, after the event that is under way."""
        super().stop()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
