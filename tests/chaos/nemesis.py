"""What goes wrong, and when: a schedule drawn from a seed, and the faults themselves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import hiredis

from tests.chaos.limits import gateway_freeze, max_clients, no_descriptors, slices, worker_kill
from tests.chaos.losses import eviction, removal, trimming
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.chaos.arena import Arena

__all__ = ["FAULTS", "Fault", "MILD", "Step", "plan"]

Fault = Callable[["Arena", random.Random], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Step:
    """Faults that come together, and the quiet after them."""

    names: tuple[str, ...]
    seed: str
    quiet: float

    @property
    def label(self) -> str:
        """How the report calls it."""
        return "+".join(sorted(self.names))

    def __str__(self) -> str:
        return f"{self.label} (seed {self.seed}), then {self.quiet:.1f} s of quiet"


def plan(
    seed: int, names: Sequence[str], *, together: float = 0.3, faults: Mapping[str, tuple[str, Any]] | None = None
) -> Iterator[Step]:
    """Draw steps for ever: rounds of all faults in random order, some of them two at once."""
    known = FAULTS if faults is None else faults
    rng = random.Random(seed)
    number = 0
    while True:
        left = rng.sample(list(names), len(names))
        while left:
            step = [left.pop()]
            fitting = [name for name in left if known[name][0] != known[step[0]][0]]
            if fitting and known[step[0]][0] != "alone" and rng.random() < together:
                other = rng.choice([name for name in fitting if known[name][0] != "alone"] or [""])
                if other:
                    left.remove(other)
                    step.append(other)
            number += 1
            yield Step(tuple(step), f"{seed}-{number}", rng.choice((0.0, 0.2, 0.5, 1.0)))


# -- Redis -------------------------------------------------------------------------------------------------


async def redis_kill(arena: Arena, rng: random.Random) -> None:
    """kill -9, a pause, and a start on what the disk has."""
    await arena.redis.kill()
    await asyncio.sleep(rng.uniform(0, 1))
    await arena.redis.start()


async def redis_pause(arena: Arena, rng: random.Random) -> None:
    """SIGSTOP: connections stay, nothing is answered."""
    arena.redis.pause()
    try:
        await asyncio.sleep(rng.uniform(0.5, 4))
    finally:
        arena.redis.resume()


async def script_flush(arena: Arena, rng: random.Random) -> None:
    """All scripts are forgotten, again and again."""
    for _ in range(10):
        await arena.redis.cli("SCRIPT", "FLUSH")
        await asyncio.sleep(rng.uniform(0, 0.2))


async def client_kill(arena: Arena, rng: random.Random) -> None:
    """Connections are closed by the server: those of pushes, those of calls, or both."""
    for _ in range(5):
        for kind in rng.choice((("pubsub",), ("normal",), ("normal", "pubsub"))):
            await arena.redis.cli("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        await asyncio.sleep(rng.uniform(0, 0.4))


async def client_pause(arena: Arena, rng: random.Random) -> None:
    """The server holds back writes, or everything, as in an ordered fail-over."""
    await arena.redis.cli("CLIENT", "PAUSE", str(rng.randint(500, 3_000)), rng.choice(("WRITE", "ALL")))
    await asyncio.sleep(3.5)


async def overflow(arena: Arena, rng: random.Random) -> None:
    """A gateway that does not read its pushes: the server drops it at its output-buffer limit."""
    sign = "for overcoming of output buffer limits"
    path = arena.redis.folder / "redis.log"
    before = path.read_text(errors="replace").count(sign)
    gateway = rng.choice(arena.gateways)
    await arena.redis.cli("CONFIG", "SET", "client-output-buffer-limit", "pubsub 65536 0 0")
    os.kill(gateway.pid, signal.SIGSTOP)
    try:
        for writer in arena.writers:
            writer.burst(40_000, 0.01)
        with contextlib.suppress(AssertionError):
            await eventually(lambda: path.read_text(errors="replace").count(sign) > before, 60, every=0.1)
            arena.board.count("effect", "overflows")
    finally:
        for writer in arena.writers:
            writer.calm()
        os.kill(gateway.pid, signal.SIGCONT)
        with contextlib.suppress(OSError, hiredis.ReplyError):
            await arena.redis.cli("CONFIG", "SET", "client-output-buffer-limit", "pubsub 33554432 8388608 60")


async def out_of_memory(arena: Arena, rng: random.Random) -> None:
    """The memory limit is reached: writes are refused, reads go on."""
    before = sum(writer.failures for writer in arena.writers)
    await arena.redis.cli("CONFIG", "SET", "maxmemory", "1")
    try:
        with contextlib.suppress(AssertionError):
            await eventually(lambda: sum(writer.failures for writer in arena.writers) > before, 60, every=0.1)
            arena.board.count("effect", "refusals")
        await asyncio.sleep(rng.uniform(0.2, 2))
    finally:
        with contextlib.suppress(OSError, hiredis.ReplyError):
            await arena.redis.cli("CONFIG", "SET", "maxmemory", "0")


# -- the network between everybody and Redis ----------------------------------------------------------------


async def black_hole(arena: Arena, rng: random.Random) -> None:
    """Nothing passes, and nobody is told."""
    proxies = rng.sample(arena.proxies, rng.randint(1, len(arena.proxies)))
    for proxy in proxies:
        proxy.black_hole = True
    await asyncio.sleep(rng.uniform(0.5, 4))
    for proxy in proxies:
        if rng.random() < 0.5:
            proxy.reset_all()
        proxy.restore()


async def latency(arena: Arena, rng: random.Random) -> None:
    """Answers are late."""
    for proxy in arena.proxies:
        proxy.latency = rng.uniform(0.01, 0.3)
    await asyncio.sleep(rng.uniform(1, 3))
    for proxy in arena.proxies:
        proxy.restore()


async def lost_replies(arena: Arena, rng: random.Random) -> None:
    """Calls arrive, their answers do not; then the connections break."""
    for _ in range(3):
        for proxy in arena.proxies:
            proxy.drop_replies = True
        await asyncio.sleep(rng.uniform(0.05, 0.4))
        for proxy in arena.proxies:
            proxy.reset_all()
            proxy.restore()
        await asyncio.sleep(rng.uniform(0.1, 0.5))


async def cut_replies(arena: Arena, rng: random.Random) -> None:
    """Connections break in the middle of an answer."""
    for _ in range(5):
        for proxy in arena.proxies:
            proxy.reply_limit = rng.randint(1, 20_000)
        await asyncio.sleep(rng.uniform(0.1, 0.5))
    for proxy in arena.proxies:
        proxy.restore()


async def silent_pushes(arena: Arena, rng: random.Random) -> None:
    """Pushes are swallowed, on connections that look healthy; calls are answered as always."""
    for link in rng.sample(arena.proxies, rng.randint(1, len(arena.proxies))):
        link.mute_pushes = True
    await asyncio.sleep(rng.uniform(1, 4))
    for link in arena.proxies:
        link.mute_pushes = False


# -- gateways ----------------------------------------------------------------------------------------------


async def gateway_kill(arena: Arena, rng: random.Random) -> None:
    """kill -9 of one gateway, and a start."""
    gateway = rng.choice(arena.gateways)
    await gateway.kill()
    await asyncio.sleep(rng.uniform(0, 0.5))
    await gateway.start(ready=False)


async def gateway_stop(arena: Arena, rng: random.Random) -> None:
    """SIGTERM of one gateway: it sends its readers away and ends; then a start."""
    gateway = rng.choice(arena.gateways)
    await arena.end_gateway(gateway)
    await gateway.start(ready=False)


async def gateway_stop_second(arena: Arena, rng: random.Random) -> None:
    """SIGTERM of the second gateway only: the first one is watched for what it never gives back."""
    await arena.end_gateway(arena.gateways[1])
    await arena.gateways[1].start(ready=False)


async def rolling_restart(arena: Arena, rng: random.Random) -> None:
    """Every gateway is restarted, each when the one before is ready again."""
    for gateway in rng.sample(arena.gateways, len(arena.gateways)):
        await arena.end_gateway(gateway)
        await gateway.start(ready=False)
        await arena.wait_ready(gateway)


# -- clients -----------------------------------------------------------------------------------------------


async def client_storm(arena: Arena, rng: random.Random) -> None:
    """All readers lose their connections at once, and again before they are back."""
    for _ in range(4):
        for reader in arena.readers:
            reader.cut()
        await asyncio.sleep(rng.uniform(0, 0.5))


async def stalled_clients(arena: Arena, rng: random.Random) -> None:
    """Half of the readers stop reading while much is written."""
    for reader in rng.sample(arena.readers, len(arena.readers) // 2):
        reader.stall(rng.uniform(2, 4))
    for writer in arena.writers:
        writer.burst(20_000, 0.01)
    await asyncio.sleep(3)
    for writer in arena.writers:
        writer.calm()
    for reader in arena.readers:
        reader.heal()


async def publisher_kill(arena: Arena, rng: random.Random) -> None:
    """Publisher processes are killed wherever they are."""
    for _ in range(2):
        for writer in arena.killed:
            before = writer.acked
            with contextlib.suppress(AssertionError):
                await eventually(lambda w=writer, b=before: w.acked > b, 15)  # type: ignore[misc]
            await asyncio.sleep(rng.uniform(0, 0.1))
            writer.kill()


async def lost_answers(arena: Arena, rng: random.Random) -> None:
    """Requests of publishers arrive at the gateways, the answers do not; then the connections break."""
    for _ in range(4):
        edges = rng.sample(arena.edges, rng.randint(1, len(arena.edges)))
        for edge in edges:
            edge.drop_replies = True
        await asyncio.sleep(rng.uniform(0.1, 0.5))
        for edge in edges:
            edge.reset_all()
            edge.restore()
        await asyncio.sleep(rng.uniform(0.1, 0.3))


REDIS = (redis_kill, redis_pause, script_flush, client_kill, client_pause, out_of_memory)
MILD: dict[str, Fault] = {"gateway_stop_second": gateway_stop_second}
"""Only for soaks."""
FAULTS: dict[str, tuple[str, Fault]] = {
    **{each.__name__: ("redis", each) for each in REDIS},
    **{each.__name__: ("network", each) for each in (black_hole, latency, lost_replies, cut_replies, silent_pushes)},
    **{each.__name__: ("gateway", each) for each in (gateway_kill, gateway_stop, rolling_restart)},
    **{each.__name__: ("clients", each) for each in (client_storm, stalled_clients, publisher_kill, lost_answers)},
    **{each.__name__: ("network", each) for each in (slices,)},
    **{each.__name__: ("gateway", each) for each in (gateway_freeze, worker_kill, no_descriptors)},
    **{each.__name__: ("alone", each) for each in (overflow, max_clients, trimming, removal, eviction)},
}
"""Name → what it breaks, and how. Two at once are of different groups. Those that are alone break two things, or
lose records on purpose: a retry of what was stored and then deleted is stored again, which is no defect."""
