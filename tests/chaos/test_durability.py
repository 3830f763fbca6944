"""The durability table of docs/faults.md: how Redis keeps its data by what happens to it: exactly what is lost.

In each cell ten calls are made safe as far as the mode can, ten more are acknowledged and at risk, and then it happens.
What is lost is a suffix of whole calls, and every reader that it concerns is told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum

import pytest

from tailrace.core.event import Event, GapReason
from tailrace.core.names import StreamName
from tailrace.errors import LogRefused, LogUnavailable, OutcomeUnknown
from tailrace.eventlog.redis.log import RedisLog
from tests.chaos.judge import Board, Outcome, Walk, judge
from tests.chaos.load import PREFIX
from tests.chaos.readers import ClientReader
from tests.chaos.truth import read_truth
from tests.support.disk import Disk
from tests.support.need import need_redis70
from tests.support.proxy import Proxy
from tests.support.redis_servers import RedisServer, find_port
from tests.support.wait import eventually

RUN = StreamName("run:kept")
CALLS, TOGETHER = 10, 3
PATIENCE = 60.0


class Mode(StrEnum):
    NOTHING = "nothing"
    SNAPSHOTS = "snapshots"
    NO = "appendfsync-no"
    EVERYSEC = "appendfsync-everysec"
    ALWAYS = "appendfsync-always"
    REPLICA = "always-and-min-replicas"

    @property
    def config(self) -> dict[str, str]:
        quick = {"repl-diskless-sync-delay": "0"}
        if self is Mode.NOTHING:
            return quick | {"appendonly": "no"}
        if self is Mode.SNAPSHOTS:
            return quick | {"appendonly": "no", "save": "3600 1000000"}
        if self is Mode.REPLICA:
            return quick | {"appendfsync": "always", "min-replicas-to-write": "1", "min-replicas-max-lag": "20"}
        return quick | {"appendfsync": self.value.removeprefix("appendfsync-")}


class Lost(StrEnum):
    """What is gone of what was acknowledged."""

    NOTHING = "nothing"
    LATEST = "what was at risk"
    EVERYTHING = "everything"


class Cell:
    """One Redis, one publisher of calls of three events, three readers, and the judge of tests/chaos."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.server = RedisServer(need_redis70(), mode.config, port=find_port())
        self.disk = Disk(self.server)
        self.replica: RedisServer | None = None
        self.wire: Proxy | None = None
        self.link = Proxy(str(self.server.socket))
        self.board = Board()
        self.log = RedisLog.connect(self.link.url, prefix=PREFIX, deadline=20)
        self.readers = {name: self._reader(name) for name in ("stays", "returns", "left early")}
        self.refused = 0
        """Calls that were refused while they were at risk."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._number = 0

    def _reader(self, name: str) -> ClientReader:
        walk = Walk(self.board, name, "client-redis", [str(RUN)])
        return ClientReader(lambda: self.link.url, walk, "", key_prefix=PREFIX)

    async def start(self) -> None:
        await self.server.start()
        await self.link.start()
        if self.mode is Mode.REPLICA:
            await self.add_replica()
        for name in self.readers:
            self.come(name)

    async def add_replica(self) -> None:
        """A replica that has everything, behind a wire that can break."""
        port = find_port()
        self.wire = await Proxy(("127.0.0.1", self.server.port), port=port).start()
        self.replica = RedisServer(
            need_redis70(), self.mode.config | {"replicaof": f"127.0.0.1 {port}"}, port=find_port()
        )
        await self.replica.start()
        await self.replicated()

    async def replicated(self) -> None:
        """Wait until the replica has everything and its master counts on it.

        WAIT would not do: it asks for what its own connection wrote.
        """
        assert self.replica is not None
        replica = self.replica
        wanted = int((await self.server.info("replication"))["master_repl_offset"])

        async def has_all() -> bool:
            info, master = await replica.info("replication"), await self.server.info("replication")
            there = info.get("master_link_status") == "up" and int(info["slave_repl_offset"]) >= wanted
            return there and "state=online" in master.get("slave0", "")

        await eventually(has_all, PATIENCE)

    def come(self, name: str) -> None:
        self._tasks[name] = asyncio.create_task(self.readers[name].run())

    async def leave(self, name: str) -> None:
        task = self._tasks.pop(name)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def publish(self, calls: int = CALLS) -> list[list[str]]:
        """Make calls one after the other; the values of those that were acknowledged."""
        made = []
        for _ in range(calls):
            self._number += 1
            attempts = [self.board.attempt(f"w{n}", str(RUN), f"call-{self._number}/{n}") for n in range(TOGETHER)]
            try:
                stored = await self.log.append(
                    RUN, [Event("test.step", {"v": one.value, "s": one.stream}) for one in attempts]
                )
            except LogRefused:
                for one in attempts:
                    one.outcome = Outcome.REFUSED
                continue
            for one, answer in zip(attempts, stored, strict=True):
                one.outcome, one.id = Outcome.ACKED, answer.id
            made.append([one.value for one in attempts])
        return made

    async def publish_again(self) -> None:
        """Publish as soon as it can be done again."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(LogUnavailable, OutcomeUnknown):
                    if await self.publish(1):
                        return
                await asyncio.sleep(0.05)

    async def caught_up(self, *names: str) -> None:
        """Wait until these readers have everything that the log has."""
        walks = [self.readers[name].walk for name in names]

        async def at_head() -> bool:
            with contextlib.suppress(LogUnavailable):
                head = (await self.log.heads([RUN]))[RUN].id
                return all(walk.positions[str(RUN)] == head for walk in walks)
            return False

        await eventually(at_head, PATIENCE, every=0.05)

    async def aclose(self) -> None:
        for name in tuple(self._tasks):
            await self.leave(name)
        await self.log.aclose()
        for proxy in (self.link, self.wire):
            if proxy is not None:
                await proxy.aclose()
        for server in (self.server, self.replica):
            if server is not None:
                await asyncio.to_thread(server.remove_sync)


@asynccontextmanager
async def opened(mode: Mode) -> AsyncIterator[Cell]:
    cell = Cell(mode)
    try:
        await cell.start()
        yield cell
    finally:
        await cell.aclose()


# -- the faults: what is safe before, and what happens -----------------------------------------------------------


async def make_safe(cell: Cell) -> None:
    """Have Redis keep what it holds, as far as the mode can."""
    if cell.mode is Mode.SNAPSHOTS:
        await cell.server.cli("SAVE")
    elif cell.mode is Mode.NO:
        cell.disk.written()
    elif cell.mode is not Mode.NOTHING:
        await cell.disk.wait_synced()


async def kill(cell: Cell) -> None:
    """kill -9, when Redis has written what it acknowledged."""

    async def written() -> bool:
        return (await cell.server.info("persistence")).get("aof_buffer_length", "0") == "0"

    await eventually(written, PATIENCE)
    await cell.server.restart()


async def power_loss(cell: Cell) -> None:
    """What no fsync has covered is gone."""
    await cell.disk.lose_power()
    cell.disk.release()
    await cell.server.start()


async def failover(cell: Cell) -> None:
    """The master is gone, and the replica takes its place with what it has."""
    assert cell.replica is not None
    old, new = cell.server, cell.replica
    await old.kill()
    await new.cli("REPLICAOF", "NO", "ONE")
    cell.server, cell.replica = new, old
    cell.link.target = str(new.socket)
    if cell.mode is Mode.REPLICA:
        old.configure({"replicaof": f"127.0.0.1 {new.port}"})
        await old.start()
        await cell.replicated()


Step = Callable[[Cell], Awaitable[None]]


async def expose_to_power_loss(cell: Cell) -> None:
    """No fsync ends, so that nothing more gets onto the disk; `always` waits for it, so there is no such time."""
    if cell.mode is Mode.EVERYSEC:
        cell.disk.hold()


async def expose_to_failover(cell: Cell) -> None:
    """The replica is cut off; nobody told it that its master changed, so it tries another one for ever."""
    if cell.replica is None:
        await cell.add_replica()
    assert cell.replica is not None
    await cell.replicated()
    await cell.replica.cli("REPLICAOF", "127.0.0.1", "1")

    async def alone() -> bool:
        return (await cell.server.info("replication"))["connected_slaves"] == "0"

    await eventually(alone, PATIENCE)


async def nothing(_: Cell) -> None:
    """A killed process: what it wrote, the system has."""


FAULTS: dict[str, tuple[Step, Step]] = {
    "kill": (nothing, kill),
    "power-loss": (expose_to_power_loss, power_loss),
    "fail-over": (expose_to_failover, failover),
}
TABLE: dict[Mode, tuple[Lost, Lost, Lost]] = {
    Mode.NOTHING: (Lost.EVERYTHING, Lost.EVERYTHING, Lost.LATEST),
    Mode.SNAPSHOTS: (Lost.LATEST, Lost.LATEST, Lost.LATEST),
    Mode.NO: (Lost.NOTHING, Lost.LATEST, Lost.LATEST),
    Mode.EVERYSEC: (Lost.NOTHING, Lost.LATEST, Lost.LATEST),
    Mode.ALWAYS: (Lost.NOTHING, Lost.NOTHING, Lost.LATEST),
    Mode.REPLICA: (Lost.NOTHING, Lost.NOTHING, Lost.NOTHING),
}
CELLS = [
    pytest.param(mode, fault, lost, id=f"{mode}-{fault}")
    for mode, row in TABLE.items()
    for fault, lost in zip(FAULTS, row, strict=True)
]


async def risk(cell: Cell, expose: Step, happen: Step) -> tuple[Sequence[list[str]], Sequence[list[str]]]:
    """The whole course of a cell: the values of the calls that were made safe, and of those at risk."""
    safe = await cell.publish()
    await cell.caught_up(*cell.readers)
    await make_safe(cell)
    await cell.leave("left early")
    await expose(cell)
    risky = await cell.publish()
    cell.refused = CALLS - len(risky)
    await cell.caught_up("stays", "returns")
    await cell.leave("returns")
    await happen(cell)
    await cell.publish_again()
    cell.come("returns")
    cell.come("left early")
    await cell.publish_again()
    await cell.caught_up(*cell.readers)
    return safe, risky


async def assert_lost(
    cell: Cell, expected: Sequence[list[str]], kept: Sequence[list[str]], *, had: Sequence[str] = ("stays", "returns")
) -> None:
    """Exactly these calls are gone, and those who `had` them were told, and nobody else."""
    truth = await read_truth(cell.server, [str(RUN)])
    found = judge(cell.board, truth, [reader.walk for reader in cell.readers.values()])
    values = [entry.value for entry in truth[str(RUN)]]
    before = [value for call in kept for value in call]
    assert values[: len(before)] == before, "what is left is not the beginning of what was published"
    assert not set(values) & {value for call in expected for value in call}
    assert {one.kind for one in found} == ({"lost", "vanished"} if expected else set()), "\n".join(map(str, found[:9]))
    told = {name for name, reader in cell.readers.items() if reader.walk.gaps}
    assert told == (set(had) if expected else set()) | (set() if kept else {"left early"})
    reasons = {gap.reason for reader in cell.readers.values() for gap in reader.walk.gaps}
    assert reasons <= {GapReason.RESET, GapReason.AHEAD}


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("mode", "fault", "lost"), CELLS)
async def test_durability(mode: Mode, fault: str, lost: Lost) -> None:
    async with opened(mode) as cell:
        safe, risky = await risk(cell, *FAULTS[fault])

        if lost is Lost.NOTHING:
            await assert_lost(cell, [], [*safe, *risky])
        elif lost is Lost.LATEST:
            await assert_lost(cell, risky, safe)
        else:
            await assert_lost(cell, [*safe, *risky], [])
        refusing = mode is Mode.REPLICA and fault == "fail-over"
        assert cell.refused == (CALLS if refusing else 0)


@pytest.mark.timeout(240)
async def test_a_kill_loses_what_everysec_held_back_behind_a_slow_disk() -> None:
    """While an fsync is under way Redis does not write, for up to two seconds, and acknowledges all the same."""
    async with opened(Mode.EVERYSEC) as cell:
        safe = await cell.publish()
        await cell.caught_up(*cell.readers)
        await cell.disk.wait_synced()
        cell.disk.hold()
        await cell.publish(1)

        async def syncing() -> bool:
            return (await cell.server.info("persistence"))["aof_pending_bio_fsync"] != "0"

        await eventually(syncing, PATIENCE)
        await cell.publish()
        await cell.caught_up(*cell.readers)
        await cell.server.kill()
        cell.disk.release()
        await cell.server.start()
        await cell.publish_again()
        await cell.caught_up(*cell.readers)

        truth = await read_truth(cell.server, [str(RUN)])
        found = judge(cell.board, truth, [reader.walk for reader in cell.readers.values()])
        lost = {attempt.value for attempt in cell.board.attempts} - {entry.value for entry in truth[str(RUN)]}
        assert {one.kind for one in found} <= {"lost", "vanished"}, "\n".join(map(str, found[:9]))
        assert not lost & {value for call in safe for value in call}
        told = {name for name, reader in cell.readers.items() if reader.walk.gaps}
        assert told == (set(cell.readers) if lost else set())


@pytest.mark.timeout(240)
async def test_a_replica_that_fell_silent_lacks_what_was_acknowledged_until_the_master_noticed() -> None:
    """What min-replicas cannot promise: for up to its max-lag, a silent replica counts as one that has everything."""
    async with opened(Mode.REPLICA) as cell:
        safe = await cell.publish()
        await cell.caught_up(*cell.readers)
        assert cell.wire is not None
        cell.wire.black_hole = True
        risky = await cell.publish()
        await cell.caught_up(*cell.readers)
        assert len(risky) == CALLS
        await failover(cell)
        await cell.publish_again()
        await cell.caught_up(*cell.readers)

        await assert_lost(cell, risky, safe, had=tuple(cell.readers))
