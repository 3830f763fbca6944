"""Two gateways on one Redis through breakable links, writers and readers of every kind, and the run over all of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tests.chaos.judge import Board, Entry, Truth, Violation, Walk, judge, parse_id, value_of
from tests.chaos.links import Edge, Link, Network
from tests.chaos.losses import REBORN_STREAM, TRIMMED_STREAM
from tests.chaos.nemesis import FAULTS, MILD, Step
from tests.chaos.readers import ClientReader, PollReader, Reader, SocketReader, SourceReader
from tests.chaos.wire import http_client
from tests.chaos.writers import LENGTHS, HttpWriter, KilledWriter, LogWriter, Writer, kinds_toml
from tests.e2e.harness import Gateway, token
from tests.support.need import need_redis70
from tests.support.proxy import Proxy
from tests.support.redis_servers import RedisServer, find_port
from tests.support.wait import eventually

__all__ = [
    "LOSSY",
    "PREFIX",
    "STREAMS",
    "TRANSPORTS",
    "Arena",
    "Load",
    "Result",
    "arena",
    "metric",
    "opened",
    "read_truth",
]

PREFIX = "chaos:"
STREAMS = ("run:a", "run:b", "run:c")
LOSSY = (TRIMMED_STREAM, REBORN_STREAM)
"""They lose records by design; the judge holds what was lost against what was told."""
SECRET_STREAM = "run:secret"
TRANSPORTS = ("sse", "sse-many", "ws", "ws-many", "poll", "poll-many", "client-http", "client-redis")
MAX_LATE_SECONDS = 3.0
"""This process itself may be late before the publishers slow down: its calls have deadlines too."""
MAX_BEHIND = 20_000
"""Records that a reader may be behind before the publishers wait for it."""
SLACK = {"task": 8, "desc": 8, "conn": 6, "tail": 0}
"""By how a part's name begins: connections to Redis are made when they are needed, and stay."""
SETTLED_SECONDS = 3.0
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


@dataclass(frozen=True)
class Load:
    """How much is going on.

    Attributes:
        streams: where publishers and readers meet.
        lossy: those of them that lose records by design.
        sets: how many readers of every transport.
        more: how many more on the transports that are cheap to read.
        pause: seconds between two calls of a publisher, on average.
        batch: events in a call straight on Redis; over HTTP a fifth of it and a fifth as often, so that the last 1 024
            uids of a stream reach further back than the longest fault.
        rest: seconds between two long-polls of a reader.
        cuts: seconds between two lost connections, at least and at most.
        killed: whether publisher processes are killed.
        workers: how many processes each gateway has.
        lengths: what is kept, by kind of stream.
    """

    streams: tuple[str, ...] = STREAMS
    lossy: tuple[str, ...] = LOSSY
    sets: int = 2
    more: int = 0
    pause: float = 0.12
    batch: int = 1
    rest: float = 0.1
    cuts: tuple[float, float] = (0.1, 0.5)
    killed: bool = True
    workers: tuple[int, int] = (1, 2)
    lengths: Mapping[str, int] = field(default_factory=lambda: LENGTHS)


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
        self._named = named
        self._next = 0
        self._cutting = True

    @staticmethod
    def key(stream: str) -> str:
        """What a stream's Redis keys begin with."""
        kind, _, name = stream.partition(":")
        return f"{PREFIX}{kind}:{{{name}}}"

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
        return _http(self.edges[self._next % len(self.edges)])

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
            settings["workers"] = str(self.load.workers[index])
            self.gateways.append(Gateway(self.redis, PREFIX, folder, **settings))
        for gateway in self.gateways:
            edge = Edge(self.network, ("127.0.0.1", gateway.port), port=find_port())
            self.edges.append(edge)
            await edge.begin()
            await gateway.start(ready=False)
        for gateway in self.gateways:
            await self.wait_ready(gateway)

    def people(self) -> None:
        """Make the writers and readers."""
        bearer, app, streams = self.bearer, self.app, self.load.streams
        for index, stream in enumerate(streams):
            others = [stream, streams[(index + 1) % len(streams)]]
            self._write(index, others, app, bearer)
        for index, stream in enumerate(set(self.load.lossy) - set(streams), len(streams)):
            self._write(index, [stream], app, bearer)
        self.writers.append(HttpWriter(self.board, "secret", [SECRET_STREAM], url=self.edge_url, token=bearer))
        urls = ",".join(map(_http, self.edges))
        if self.load.killed:
            self.killed = [
                KilledWriter(self.board, "dying-http", "run:a", target=("http", bearer, urls), repeats=True),
                KilledWriter(self.board, "dying-log", "run:b", target=("log", PREFIX, app), repeats=False),
            ]
        self.writers += self.killed
        for writer in self.writers:
            seldom = 5 if self.load.batch > 1 and not isinstance(writer, LogWriter) else 1
            writer.pause = writer.usual_pause = self.load.pause * seldom
        for index in range(self.load.sets):
            self._readers(f"{index}", streams[index % len(streams) :][:1], streams[: 2 + index % 2], app)
        for index in range(self.load.sets, self.load.sets + self.load.more):
            self._reader(SourceReader, "sse", streams[index % len(streams) :][:1], f"{index}")
            self._reader(SourceReader, "sse-many", streams, f"{index}")
            if index % 4 == 0:
                self._reader(PollReader, "poll-many", streams, f"{index}")
        for stream in set(self.load.lossy) - set(streams):
            self._readers(f"-{stream}", [stream], [stream, streams[0]], app)
        self._intruders()
        for reader in self.readers:
            if isinstance(reader, PollReader):
                reader.rest = self.load.rest

    def _write(self, index: int, streams: list[str], app: str, bearer: str) -> None:
        http = HttpWriter(self.board, f"http{index}", streams, url=self.edge_url, token=bearer, named=self._named)
        log = LogWriter(self.board, f"log{index}", streams, url=app, key_prefix=PREFIX, lengths=self.load.lengths)
        http.batch = http.usual_batch = max(1, self.load.batch // 5)
        log.batch = log.usual_batch = self.load.batch
        self.writers += [http, log]

    def _readers(self, suffix: str, one: Sequence[str], many: Sequence[str], app: str) -> None:
        self._reader(SourceReader, "sse", one, suffix)
        self._reader(SourceReader, "sse-many", many, suffix)
        self._reader(SocketReader, "ws", one, suffix)
        self._reader(_commands, "ws-many", many, suffix)
        self._reader(PollReader, "poll", one, suffix)
        self._reader(PollReader, "poll-many", many, suffix)
        self._reader(ClientReader, "client-http", many, suffix)
        walk = Walk(self.board, f"client-redis{suffix}", "client-redis", many)
        self.readers.append(ClientReader(lambda: app, walk, "", key_prefix=PREFIX, ends=self.load.lossy))

    def _reader(self, make: Callable[..., Reader], transport: str, streams: Sequence[str], suffix: str) -> None:
        name = f"{transport}{suffix}"
        walk = Walk(self.board, name, transport, streams)
        self.readers.append(
            make(self.url, walk, token(name.replace(":", "-"), read=list(streams)), ends=self.load.lossy)
        )

    def _intruders(self) -> None:
        """They ask for more than they may read."""
        stream = self.load.streams[0]
        for transport, make in (("sse-many", SourceReader), ("ws-many", _commands), ("poll-many", PollReader)):
            intruder = _Intruder(self.board, f"intruder-{transport}", transport, (stream,))
            reader = make(self.url, intruder, token(intruder.name, read=[stream]), asked=(stream, SECRET_STREAM))
            reader.stays = False
            self.readers.append(reader)

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

    async def footprint(self) -> dict[str, int]:
        """What everybody holds: descriptors, connections, tasks."""
        found = {"tasks of the clients": len(asyncio.all_tasks())}
        for gateway in self.gateways:
            process = psutil.Process(gateway.pid)
            held = sum(each.num_fds() for each in (process, *process.children()))
            found[f"descriptors of {gateway.url}"] = held
        found["connections to Redis"] = int((await self.redis.info("clients"))["connected_clients"])
        async with http_client() as client:
            text = (await client.get(f"{self.gateways[0].url}/metrics")).text
        # The probe reads too.
        for name in ("tailrace_connections", "tailrace_subscriptions"):
            found[name] = int(metric(text, name))
        return found

    async def settled(self) -> dict[str, int]:
        """The same, once it has not grown for a while: features connect a moment after their gateway is ready."""
        most, since = await self.footprint(), time.monotonic()
        while time.monotonic() - since < SETTLED_SECONDS:
            await asyncio.sleep(0.2)
            now = await self.footprint()
            if any(now[name] > most[name] for name in now):
                most, since = {name: max(most[name], now[name]) for name in now}, time.monotonic()
        return most

    async def expect_nothing_left(self, before: dict[str, int]) -> None:
        """When all clients are gone, everything they took is given back."""

        async def given_back() -> bool:
            now = await self.footprint()
            left = {
                name: (before[name], number) for name, number in now.items() if number > before[name] + SLACK[name[:4]]
            }
            assert not left, left
            return True

        try:
            await eventually(given_back, PATIENCE, every=0.2)
        except AssertionError as error:
            self.board.complain("left over", "everybody", "", str(error))

    async def run(self, seed: int, steps: AsyncIterator[Step]) -> Result:
        """The whole run: load, faults, the drain, the judgement."""
        began = time.monotonic()
        before = await self.settled()
        self.people()
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
        honest = [walk for walk in walks if not isinstance(walk, _Intruder)]
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


class _Intruder(Walk):
    """Who is given something else than its own stream is told apart; how far it gets does not matter."""


AnArena = TypeVar("AnArena", bound=Arena)


def metric(text: str, name: str) -> float:
    """A metric, over all of its labels."""
    return sum(float(found) for found in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE))


def _http(proxy: Proxy) -> str:
    return proxy.url.replace("redis://", "http://")


def _commands(*args: object, **options: object) -> SocketReader:
    return SocketReader(*args, commands=True, **options)  # type: ignore[arg-type]


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


async def read_truth(redis: RedisServer, streams: Sequence[str]) -> Truth:
    """What Redis itself holds."""
    truth: dict[str, list[Entry]] = {}
    for stream in streams:
        entries, at = [], "-"
        while page := await redis.cli("XRANGE", f"{Arena.key(stream)}:events", at, "+", "COUNT", "5000"):
            entries += page
            at = f"({page[-1][0]}"
        truth[stream] = [_entry(id_, fields) for id_, fields in entries]
    return truth


def _entry(id_: str, fields: list[str]) -> Entry:
    pairs = dict(zip(fields[::2], fields[1::2], strict=True))
    return Entry(parse_id(id_), parse_id(pairs["prev"]), value_of(pairs["data"].encode())[0])


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
