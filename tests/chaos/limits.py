"""Faults of hosts: no more connections, no more descriptors, processes that stand still, networks that cut finely."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
from typing import TYPE_CHECKING

import psutil

from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.chaos.arena import Arena

__all__ = ["gateway_freeze", "max_clients", "no_descriptors", "slices", "worker_kill"]


async def max_clients(arena: Arena, rng: random.Random) -> None:
    """Redis drops its clients and takes only a few back."""
    async with arena.redis.connection() as call:
        before = int((await arena.redis.info("stats"))["rejected_connections"])
        await call("CONFIG", "SET", "maxclients", rng.randint(3, 8))
        for kind in ("normal", "pubsub"):
            await call("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        await asyncio.sleep(rng.uniform(1, 4))
        await call("CONFIG", "SET", "maxclients", 10_000)
    if int((await arena.redis.info("stats"))["rejected_connections"]) > before:
        arena.board.count("effect", "rejections")


async def no_descriptors(arena: Arena, rng: random.Random) -> None:
    """A gateway may open no more files while all readers come back."""
    process = psutil.Process(rng.choice(arena.gateways).pid)
    pids = [process.pid, *(child.pid for child in process.children())]
    before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids}
    try:
        for pid, (_, hard) in before.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (psutil.Process(pid).num_fds(), hard))
        for reader in arena.readers:
            reader.cut()
        await asyncio.sleep(rng.uniform(1, 3))
    finally:
        for pid, limits in before.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


async def gateway_freeze(arena: Arena, rng: random.Random) -> None:
    """A gateway stands still (its event loop, and everything else of it), and goes on."""
    process = psutil.Process(rng.choice(arena.gateways).pid)
    pids = [process.pid, *(child.pid for child in process.children())]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(rng.uniform(1, 5))
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def worker_kill(arena: Arena, rng: random.Random) -> None:
    """kill -9 of one of several workers; their supervisor starts another one."""
    process = psutil.Process(arena.gateways[-1].pid)
    for _ in range(2):
        workers = process.children()
        if not workers:
            break
        victim = rng.choice(workers)
        victim.kill()
        with contextlib.suppress(AssertionError):
            await eventually(lambda w=workers: not {c.pid for c in process.children()} <= {c.pid for c in w}, 60)  # type: ignore[misc]
            arena.board.count("effect", "restarts")
        await asyncio.sleep(rng.uniform(0, 0.5))


async def slices(arena: Arena, rng: random.Random) -> None:
    """All readers come back through a network that hands over one to seven bytes at a time."""
    arena.detour = True
    for edge in arena.edges:
        edge.slices = random.Random(rng.random())
    try:
        for reader in arena.readers:
            reader.cut()
        await asyncio.sleep(rng.uniform(2, 4))
    finally:
        arena.detour = False
        for edge in arena.edges:
            edge.slices = None
        for reader in arena.readers:
            reader.cut()
