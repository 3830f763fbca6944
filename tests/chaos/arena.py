"""Two gateways on one Redis through breakable links, writers and readers of every kind, and the run over all of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.chaos.footprint import expect_nothing_left, settled
from tests.chaos.judge import Board, Truth, Violation, Walk, judge
from tests.chaos.links import Edge, Link, Network
from tests.chaos.load import PREFIX, SECRET_STREAM, Load, key_of
from tests.chaos.nemesis import FAULTS, MILD, Step
from tests.chaos.people import Intruder, invite
from tests.chaos.readers import Reader
from tests.chaos.truth import read_truth
from tests.chaos.writers import KilledWriter, Writer, kinds_toml
from tests.e2e.harness import Gateway, token
from tests.support.need import need_redis70
from tests.support.redis_servers import RedisServer, find_port
from tests.support.wait import eventually

__all__ = ["Arena", "Result", "arena", "opened"]

MAX_LATE_SECONDS = 3.0
"""This process itself may be late before the publishers slow down: its calls have deadlines too."""
MAX_BEHIND = 20_000
"""Records that a reader may be behind before the publishers wait for it."""
PATIENCE = 300.0
"""How long anything may take that must come about at last; a loaded machine is no defect."""


@dataclass
class Result:
    """What came out of a run."""

    board: Board
    truth: Truth
    walks: list[Walk]
    violations: list[Violation]
    steps: list[str]
    seconds: float

    def kinds(self) -> set[str]:
        """The kinds of violations."""
        return {violation.kind for violation in self.violations}


class Arena:
    """All processes and clients of a run.

    Args:
        folder: for everything that it writes.
        redis: settings of its Redis.
        port: a port for it, beside its socket.
        named: whether publishes over HTTP have uids.
        load: how much is going on.
        server: a Redis that somebody else starts and ends, instead of one of its own; no links lead to it.
    """

    faults: Mapping[str, tuple[str, Callable[..., Coroutine[Any, Any, None]]]] = FAULTS
    """What its steps are made of."""

    def __init__(
        self,
        folder: Path,
        *,
        redis: dict[str, str] | None = None,
        port: int = 0,
        named: bool = True,
        load: Load | None = None,
        server: RedisServer | None = None,
    ) -> None:
        self.load = load or Load()
        self.board = Board()
        self.folder = folder
        self.redis = server or RedisServer(need_redis70(), {"appendfsync": "no", **(redis or {})}, port=port)
        self.others: list[RedisServer] = []
        """More servers that end with the arena."""
        self.network = Network()
        self.proxies = [Link(self.network, str(self.redis.socket)) for _ in range(3 if server is None else 0)]
        self.app = ""
        """Where those find Redis who go to it without a gateway."""
        self.edges: list[Edge] = []
        self.gateways: list[Gateway] = []
        self.writers: list[Writer] = []
        """Between the HTTP publishers (all clients, on a `detour`) and each gateway."""
        self.detour = False
        self.bearer = token("writer", write=["run:*", "task:*", "job:*"])
        self.killed: list[KilledWriter] = []
        self.readers: list[Reader] = []
        self.steps: list[str] = []
        self.named = named
        self._next = 0
        self._cutting = True

    @staticmethod
    def key(stream: str) -> str:
        """What a stream's Redis keys begin with."""
        return key_of(stream)

    @property
    def streams(self) -> list[str]:
        """All of them."""
        return [*dict.fromkeys((*self.load.streams, *self.load.lossy)), SECRET_STREAM]

    def url(self) -> str:
        """One gateway after the other."""
        if self.detour:
            return self.edge_url()
        self._next += 1
        return self.gateways[self._next % len(self.gateways)].url

    def edge_url(self) -> str:
        """The same for publishers, whose answers may be lost."""
        self._next += 1
        return self.edges[self._next % len(self.edges)].http_url

    async def open_servers(self) -> list[str]:
        """Start Redis and the ways to it: the URL of `app`, and one for each gateway."""
        await self.redis.start()
        for proxy in self.proxies:
            await proxy.begin()
        return [proxy.url for proxy in self.proxies]

    async def wait_servers(self) -> None:
        """Wait until Redis is well again."""
        await asyncio.to_thread(self.redis.wait_ready_sync)

    async def remove_servers(self) -> None:
        """End Redis and what is left of it."""
        for server in (self.redis, *self.others):
            await asyncio.to_thread(server.remove_sync)

    async def truth(self) -> Truth:
        """What the log holds."""
        return await read_truth(self.redis, self.streams)

    async def start(self) -> None:
        """Start the servers."""
        self.app, *urls = await self.open_servers()
        for index, url in enumerate(urls):
            folder = self.folder / f"gateway{index + 1}"
            folder.mkdir()
            (folder / "tailrace.toml").write_text(kinds_toml(self.load.lengths))
            settings = {"redis_url": url, "stall_seconds": "2", "log_timeout_seconds": "2"}
            settings["max_connections_per_user"] = "1000"  # counted, never reached: a killed gateway's run out later
            settings["workers"] = str(self.load.workers[index])
            self.gateways.append(Gateway(self.redis, PREFIX, folder, **settings))
        for gateway in self.gateways:
            edge = Edge(self.network, ("127.0.0.1", gateway.port), port=find_port())
            self.edges.append(edge)
            await edge.begin()
            await gateway.start(ready=False)
        for gateway in self.gateways:
            await self.wait_ready(gateway)

    async def end_gateway(self, gateway: Gateway) -> None:
        """SIGTERM, and hold what does not go well against it."""
        try:
            code = await gateway.stop(PATIENCE / 2)
        except AssertionError as error:
            self.board.complain("no drain", gateway.url, "", str(error)[-500:])
            return
        if code != 0:
            self.board.complain("exit code", gateway.url, "", f"{code}: {gateway.log.read_text()[-500:]}")

    async def wait_ready(self, gateway: Gateway) -> None:
        """Wait until a gateway is ready."""
        await gateway.wait_ready(PATIENCE)

    async def step(self, step: Step) -> None:
        """Let the faults happen, then wait until everybody gets something again."""
        self.steps.append(str(step))
        self.board.fault = step.label
        self.board.note("fault", "nemesis", step=step)
        async with asyncio.TaskGroup() as group:
            for name in step.names:
                fault = MILD[name] if name in MILD else self.faults[name][1]
                group.create_task(fault(self, random.Random(f"{step.seed}-{name}")))
        await self.heal()
        await self.progress(5)
        self.board.fault = "quiet"
        await asyncio.sleep(step.quiet)

    async def heal(self) -> None:
        """Undo every fault."""
        for proxy in (*self.proxies, *self.edges):
            proxy.restore()
        for reader in self.readers:
            reader.heal()
        await self.wait_servers()
        for gateway in self.gateways:
            await self.wait_ready(gateway)

    async def progress(self, least: int) -> None:
        """Wait until every writer was acknowledged and every honest reader was given something."""
        readers = [reader for reader in self.readers if reader.stays]
        written = [writer.acked + 1 for writer in self.writers]
        given = [reader.walk.deliveries + least for reader in readers]

        def moved() -> bool:
            late = [r.walk.name for r, n in zip(readers, given, strict=True) if r.walk.deliveries < n]
            late += [w.name for w, n in zip(self.writers, written, strict=True) if w.acked < n]
            assert not late, late
            return True

        try:
            await eventually(moved, PATIENCE, every=0.05)
        except AssertionError as error:
            self.board.complain("stuck", "everybody", "", f"not in {PATIENCE} s: {error}")

    async def disconnect(self, seed: int) -> None:
        """Readers lose their connections all the time; most of them not before they were given something on it."""
        rng = random.Random(seed)
        had = dict.fromkeys(self.readers, 0)
        while self._cutting:
            await asyncio.sleep(rng.uniform(*self.load.cuts))
            reader = rng.choice(self.readers)
            if reader.walk.deliveries > had[reader] or rng.random() < 0.1:
                had[reader] = reader.walk.deliveries
                reader.cut()

    async def pace(self) -> None:
        """Hold the writers back while a reader is far behind: what is to be tried is faults, not patience."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 0.5
            await asyncio.sleep(0.5)
            late = loop.time() - due
            # The last key is the last one that anybody was the first to see.
            newest = {stream: next(reversed(seen)) for stream, seen in self.board.seen.items() if seen}
            behind = max(
                (
                    newest[stream].seq - position.seq
                    for reader in self.readers
                    for stream, position in reader.walk.positions.items()
                    if reader.stays and stream in newest and stream not in self.load.lossy
                ),
                default=0,
            )
            for writer in self.writers:
                writer.held = behind > MAX_BEHIND or late > MAX_LATE_SECONDS

    async def expect_nothing_left(self, before: dict[str, int]) -> None:
        """When all clients are gone, everything they took is given back."""
        await expect_nothing_left(self, before, patience=PATIENCE)

    async def run(self, seed: int, steps: AsyncIterator[Step]) -> Result:
        """The whole run: load, faults, the drain, the judgement."""
        began = time.monotonic()
        before = await settled(self)
        invite(self)
        async with contextlib.AsyncExitStack() as stack:
            reading = _tasks(stack, [*(reader.run() for reader in self.readers), self.disconnect(seed), self.pace()])
            writing = _tasks(stack, [writer.run() for writer in self.writers])
            await self.progress(5)
            async for step in steps:
                await self.step(step)
                _raise_defects([*reading, *writing])
            await self.drain(writing)
            truth = await self.truth()
            await self.catch_up(truth)
        await self.expect_nothing_left(before)
        for gateway in self.gateways:
            for line in gateway.complaints():
                self.board.complain("log", gateway.url, "", line)
        walks = [reader.walk for reader in self.readers]
        honest = [walk for walk in walks if not isinstance(walk, Intruder)]
        found = judge(self.board, truth, honest, lossy=self.load.lossy)
        return Result(self.board, truth, walks, found, self.steps, time.monotonic() - began)

    async def drain(self, writing: Sequence[asyncio.Task[None]]) -> None:
        """Let the writers end with what they have begun."""
        self.board.fault = "drain"
        self._cutting = False
        for writer in self.writers:
            writer.stop()
        done, late = await asyncio.wait(writing, timeout=PATIENCE)
        if late:
            self.board.complain("stuck", f"{len(late)} writers", "", "did not end")
        _raise_defects(list(done))

    async def catch_up(self, truth: Truth) -> None:
        """Wait until every honest reader has everything; who has not is judged."""
        walks = [reader.walk for reader in self.readers if reader.stays]

        def all_there() -> bool:
            return all(
                not truth[stream] or position == truth[stream][-1].id
                for walk in walks
                for stream, position in walk.positions.items()
            )

        with contextlib.suppress(AssertionError):
            await eventually(all_there, PATIENCE, every=0.05)

    async def aclose(self) -> None:
        """End everything."""
        for gateway in self.gateways:
            await gateway.kill()
        for proxy in (*self.edges, *self.proxies):
            await proxy.end()
        await self.remove_servers()
        self.network.close()


AnArena = TypeVar("AnArena", bound=Arena)


def _tasks(
    stack: contextlib.AsyncExitStack, coroutines: Sequence[Coroutine[Any, Any, None]]
) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(each) for each in coroutines]

    async def end() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    stack.push_async_callback(end)
    return tasks


def _raise_defects(tasks: Sequence[asyncio.Task[None]]) -> None:
    """A defect of the harness is no result."""
    for task in tasks:
        if task.done() and not task.cancelled():
            task.result()


@asynccontextmanager
async def arena(
    *, redis: dict[str, str] | None = None, port: int = 0, named: bool = True, load: Load | None = None
) -> AsyncIterator[Arena]:
    """An arena that is up; ended afterwards."""
    async with opened(lambda folder: Arena(folder, redis=redis, port=port, named=named, load=load)) as made:
        yield made


@asynccontextmanager
async def opened(make: Callable[[Path], AnArena]) -> AsyncIterator[AnArena]:
    """Make an arena of any kind in a folder of its own, and start it; ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="tr-chaos-", dir="/tmp") as folder:
        made = make(Path(folder))
        try:
            await made.start()
            yield made
        finally:
            await made.aclose()
