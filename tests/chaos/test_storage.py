"""Disks and memory that fail under a real Redis: publishes are refused with a reason, readers stay, all goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tailrace.core.event import GapReason
from tests.chaos.judge import Outcome
from tests.chaos.stage import PATIENCE, RUN, Stage, serve, stage
from tests.support.disk import Disk
from tests.support.need import need_binary, need_redis70
from tests.support.proxy import Proxy
from tests.support.redis_servers import RedisServer
from tests.support.wait import eventually

Do = Callable[["Site"], Awaitable[object]]
LOST = {"lost", "vanished"}


class Site:
    """One server on its disk, one gateway, readers that stay."""

    def __init__(self, server: RedisServer, disk: Disk, run: Stage, url: str) -> None:
        self.server = server
        self.disk = disk
        self.run = run
        self.url = url

    async def connects(self) -> int:
        """How often the readers connected so far; polls do it all the time."""
        counts = self.run.board.counts
        return sum(number for (_, way, what), number in counts.items() if what == "connects" and way != "poll")

    async def readable(self) -> None:
        """What is stored can be read, whatever else cannot be done."""
        async with httpx.AsyncClient(headers=self.run.headers, timeout=20) as client:
            answer = await client.get(f"{self.url}/api/v1/streams/{RUN}/events")
        assert (answer.status_code, len(answer.json()["events"])) == (200, 5)

    async def is_ready(self, wanted: int) -> None:
        """Wait for what `/readyz` has to say."""
        async with httpx.AsyncClient(timeout=20) as client:

            async def says() -> bool:
                return (await client.get(f"{self.url}/readyz")).status_code == wanted

            await eventually(says, PATIENCE, every=0.1)


@asynccontextmanager
async def site(config: dict[str, str]) -> AsyncIterator[Site]:
    """Five events are stored, and every reader has them."""
    server = RedisServer(need_redis70(), config)
    disk = Disk(server)
    link = Proxy(str(server.socket))
    try:
        await server.start()
        await link.start()
        async with serve(link.url, deadline=4) as url, stage() as run:
            made = Site(server, disk, run, url)
            run.attend("readers", url)
            for _ in range(5):
                await run.works(url)
            await run.caught_up(server)
            yield made
    finally:
        await link.aclose()
        await asyncio.to_thread(server.remove_sync)


# -- writes that are refused -------------------------------------------------------------------------------------


async def fill_disk(site: Site) -> None:
    """The append-only file cannot grow: Redis notices when it wants to write, after it acknowledged that."""
    site.disk.fill()
    await site.run.publish(site.url)

    async def noticed() -> bool:
        return (await site.server.info("persistence"))["aof_last_write_status"] == "err"

    await eventually(noticed, PATIENCE)


async def clear_disk(site: Site) -> None:
    site.disk.clear()


async def break_snapshots(site: Site) -> None:
    """A folder lies where the snapshot has to go."""
    (site.server.folder / "dump.rdb").mkdir()
    await _snapshot(site, "err")


async def mend_snapshots(site: Site) -> None:
    (site.server.folder / "dump.rdb").rmdir()
    await _snapshot(site, "ok")


async def _snapshot(site: Site, status: str) -> None:
    await site.server.cli("BGSAVE")

    async def ended() -> bool:
        told = await site.server.info("persistence")
        return (told["rdb_bgsave_in_progress"], told["rdb_last_bgsave_status"]) == ("0", status)

    await eventually(ended, PATIENCE)


async def reach_memory_limit(site: Site) -> None:
    await site.server.cli("CONFIG", "SET", "maxmemory", "1")


async def lift_memory_limit(site: Site) -> None:
    await site.server.cli("CONFIG", "SET", "maxmemory", "0")


async def want_replica(site: Site) -> None:
    await site.server.cli("CONFIG", "SET", "min-replicas-to-write", "1")


async def want_none(site: Site) -> None:
    await site.server.cli("CONFIG", "SET", "min-replicas-to-write", "0")


REFUSING: dict[str, tuple[dict[str, str], Do, Do]] = {
    "disk-full": ({"appendfsync": "everysec"}, fill_disk, clear_disk),
    "snapshots-fail": ({"appendonly": "no", "save": "3600 1"}, break_snapshots, mend_snapshots),
    "memory-full": ({}, reach_memory_limit, lift_memory_limit),
    "no-replica": ({}, want_replica, want_none),
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", REFUSING)
async def test_refused_writes_are_told_as_not_stored_and_nothing_else_suffers(name: str) -> None:
    config, break_it, mend_it = REFUSING[name]
    async with site(config) as made:
        await break_it(made)
        connects = await made.connects()
        refused = await made.run.publish(made.url, 3)
        if name == "disk-full":
            await made.is_ready(503)
        else:
            await made.readable()
        kept = await made.connects()
        await mend_it(made)
        await made.run.works(made.url)
        await made.run.publish(made.url, 3)
        await made.run.caught_up(made.server)
        found = await made.run.judged(made.server)

    assert made.run.codes == ["LOG_REFUSED"] * 3
    assert {attempt.outcome for attempt in refused} == {Outcome.REFUSED}
    assert kept == connects, "a reader lost its connection"
    assert not found, "\n".join(map(str, found[:9]))
    assert made.run.told("readers") == set()


# -- a server that stops, or does not start ------------------------------------------------------------------------


async def ended(site: Site) -> None:
    """Wait until the server has given up."""
    await eventually(lambda: not site.server.running, PATIENCE)


@pytest.mark.timeout(240)
async def test_a_server_that_ends_itself_on_a_full_disk_costs_nothing_that_was_acknowledged() -> None:
    """With `always` Redis ends rather than acknowledge what it cannot keep."""
    async with site({"appendfsync": "always"}) as made:
        made.disk.fill()
        (tried,) = await made.run.publish(made.url)
        await ended(made)
        (away,) = await made.run.publish(made.url)
        await made.server.start()
        await made.run.works(made.url)
        await made.run.caught_up(made.server)
        found = await made.run.judged(made.server)

    assert tried.outcome is Outcome.OPEN
    assert away.outcome is Outcome.REFUSED
    assert made.run.codes == ["OUTCOME_UNKNOWN", "LOG_UNAVAILABLE"]
    assert not found, "\n".join(map(str, found[:9]))
    assert made.run.told("readers") == set()


@pytest.mark.timeout(240)
async def test_a_disk_that_hangs_leaves_publishes_open_until_a_repeat_settles_them() -> None:
    async with site({"appendfsync": "always"}) as made:
        made.disk.hold()
        (open_one,) = await made.run.publish(made.url)
        assert open_one.outcome is Outcome.OPEN
        (refused,) = await made.run.publish(made.url)
        assert refused.outcome is Outcome.REFUSED
        made.disk.release()
        await made.run.works(made.url)
        await made.run.repeat(made.url, open_one)
        await made.run.caught_up(made.server)
        found = await made.run.judged(made.server)

    assert open_one.id is not None
    assert made.run.codes == ["OUTCOME_UNKNOWN", "LOG_UNAVAILABLE"]
    assert not found, "\n".join(map(str, found[:9]))
    assert made.run.told("readers") == set()


def _file(server: RedisServer) -> Path:
    (path,) = (server.folder / "appendonlydir").glob("*.incr.aof")
    return path


def flip_byte(server: RedisServer) -> None:
    """In the middle, in the length of an argument: what follows makes no sense any more."""
    data = bytearray(_file(server).read_bytes())
    at = data.index(b"\r\n$", len(data) // 2) + 3
    data[at] ^= 0x40
    _file(server).write_bytes(data)


@pytest.mark.timeout(240)
async def test_a_server_that_refuses_its_damaged_file_leaves_the_gateway_waiting_and_the_repair_is_announced() -> None:
    async with site({}) as made:
        lost = await made.run.publish(made.url, 20)
        await made.run.caught_up(made.server)
        await made.disk.wait_synced()
        await made.server.kill()
        flip_byte(made.server)
        await made.server.start(wait=False)
        await ended(made)
        assert "Bad file format" in made.server.log()
        await made.is_ready(503)
        connects = await made.connects()
        (away,) = await made.run.publish(made.url)
        assert away.outcome is Outcome.REFUSED
        assert await made.connects() == connects, "readers are sent away for a log that is away"
        fix = need_binary("redis-check-aof", "redis-tools")
        process = await asyncio.create_subprocess_exec(
            fix, "--fix", str(_file(made.server)), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        await process.communicate(b"y\n")
        await made.server.start()
        await made.run.works(made.url)
        await made.run.caught_up(made.server)
        found = await made.run.judged(made.server)

    assert {one.kind for one in found} == LOST, "\n".join(map(str, found[:9]))
    assert 0 < sum(one.kind == "lost" for one in found) <= len(lost)
    assert made.run.told("readers") == made.run.everybody("readers")


@pytest.mark.timeout(240)
async def test_a_torn_end_of_the_file_loses_the_last_calls_and_everybody_is_told() -> None:
    async with site({}) as made:
        lost = await made.run.publish(made.url, 5)
        await made.run.caught_up(made.server)
        await made.disk.wait_synced()
        await made.server.kill()
        data = _file(made.server).read_bytes()
        _file(made.server).write_bytes(data[: data.rindex(b"$4\r\nXADD") - 40])
        await made.server.start()
        # PROTOCOL.md and docs/faults.md: half of a script may be left in the file, which the next start would run.
        await made.server.cli("BGREWRITEAOF")
        await made.run.works(made.url)
        await made.run.caught_up(made.server)
        found = await made.run.judged(made.server)

    assert {one.kind for one in found} == LOST, "\n".join(map(str, found[:9]))
    assert 1 <= sum(one.kind == "lost" for one in found) <= len(lost)
    assert made.run.told("readers") == made.run.everybody("readers")


# -- eviction ------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(240)
async def test_a_stream_that_the_server_evicted_is_announced_and_begins_again() -> None:
    """The start-up check refuses such a policy; this is what happens to who allowed it, or changed it later."""
    async with site({"maxmemory-policy": "allkeys-lru"}) as made:
        await made.server.cli("CONFIG", "SET", "maxmemory", "1")

        async def evicted() -> bool:
            return int(await made.server.cli("DBSIZE")) == 0

        await eventually(evicted, PATIENCE)
        await made.server.cli("CONFIG", "SET", "maxmemory", "0")
        await made.run.works(made.url)
        await made.run.caught_up(made.server)
        found = await made.run.judged(made.server)

    assert {one.kind for one in found} == LOST, "\n".join(map(str, found[:9]))
    assert made.run.told("readers") == made.run.everybody("readers")
    reasons = {gap.reason for reader in made.run.readers["readers"] for gap in reader.walk.gaps}
    assert reasons <= {GapReason.RESET, GapReason.AHEAD}
