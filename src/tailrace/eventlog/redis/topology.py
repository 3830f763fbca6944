"""Which server has a key now: one server, a Sentinel's master, or a Cluster's slots.

What is known may be old: callers use it, and tell what they met (`lost`, `redirected`); the next question then asks
the servers again. `follow` also watches in the background and calls `on_change` subscribers, so that tails move.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any

from tailrace.errors import ConfigError, LogUnavailable
from tailrace.eventlog.redis.connection import Connection, ReplyError
from tailrace.eventlog.redis.endpoint import Address, Endpoint, Mode
from tailrace.eventlog.redis.slots import SLOTS, key_slot

__all__ = ["Topology", "open_topology"]

ASK_SECONDS = 1.0
"""How long one server may take to say what it knows; then the next is asked."""
REFRESH_SECONDS = 5.0
"""How long all of them together may take."""
SENTINEL_POLL_SECONDS = 0.5
CLUSTER_POLL_SECONDS = 5.0
REFRESH_PAUSE_SECONDS = 0.1
"""A storm of MOVED answers asks for the slots at most this often."""


class Topology:
    """One server that has every key; the base of the others."""

    mode = Mode.STANDALONE

    def __init__(self, address: Address) -> None:
        self.address = address
        self._listeners: list[Callable[[], None]] = []

    async def endpoint_for(self, slot: int | None = None) -> Endpoint:
        """The server that has this slot's keys.

        Raises:
            LogUnavailable: nobody who was asked knows.
        """
        return self.address.data

    def known(self, slot: int | None) -> Endpoint | None:
        """The server that had this slot's keys when the servers were last asked; None: never known."""
        return self.address.data

    async def nodes(self) -> tuple[Endpoint, ...]:
        """All servers that have keys (the masters).

        Raises:
            LogUnavailable: nobody who was asked knows.
        """
        return (self.address.data,)

    def slot(self, key: str | bytes) -> int | None:
        """The Cluster slot of a key; None off Cluster."""
        return None

    def lost(self, endpoint: Endpoint) -> None:
        """Tell that `endpoint` cannot be reached or refuses writes: the servers are asked again before the next use."""

    def redirected(self, error: ReplyError, endpoint: Endpoint) -> Endpoint | None:
        """What a reply of `endpoint` means for the topology.

        MOVED: its slot's new server, remembered. ASK: the server to send this one command to with `asking=True`.
        READONLY, MASTERDOWN, CLUSTERDOWN, TRYAGAIN: None, and the servers are asked again. Anything else: None.
        """
        if error.code in ("READONLY", "MASTERDOWN"):
            self.lost(endpoint)
        return None

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have `listener` called after each change of masters or slots; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def follow(self) -> None:
        """Watch for changes until cancelled. Never raises because a server does not answer."""
        await asyncio.get_running_loop().create_future()

    def _changed(self) -> None:
        for listener in tuple(self._listeners):
            listener()


class _Asking(Topology):
    """A topology that asks servers, one question at a time however many callers wait for its answer."""

    poll_seconds: float

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._stale = True
        self._asked_at = float("-inf")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._followers = 0
        self._kept: Connection | None = None
        """While somebody follows: the connection that answered last."""

    def lost(self, endpoint: Endpoint) -> None:
        self._stale = True
        self._wake.set()

    async def follow(self) -> None:
        self._followers += 1
        try:
            while True:
                try:
                    await self._refresh()
                except LogUnavailable:
                    self._stale = True
                self._wake.clear()
                pause = SENTINEL_POLL_SECONDS if self._stale else self.poll_seconds
                try:
                    async with asyncio.timeout(pause * random.uniform(0.8, 1.2)):
                        await self._wake.wait()
                except TimeoutError:
                    self._stale = True
        finally:
            self._followers -= 1
            if self._followers == 0 and self._kept is not None:
                self._kept.abort()
                self._kept = None

    async def _fresh(self) -> None:
        if self._stale:
            await self._refresh()

    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # Another loop than before (asyncio.run once more): its clock, locks and connections are not ours.
            self._loop, self._lock, self._wake, self._kept = loop, asyncio.Lock(), asyncio.Event(), None
            self._asked_at, self._stale = float("-inf"), True
        async with self._lock:
            if not self._stale:
                return
            await asyncio.sleep(self._asked_at + REFRESH_PAUSE_SECONDS - loop.time())
            self._asked_at = loop.time()
            # Cleared first: what is told while we ask must make us ask again.
            self._stale = False
            try:
                async with asyncio.timeout(REFRESH_SECONDS):
                    await self._ask_all()
            except BaseException as exc:
                self._stale = True
                if isinstance(exc, TimeoutError):
                    raise LogUnavailable("no server said in time who has the keys") from exc
                raise

    async def _ask_all(self) -> None:
        """Ask servers until one knows.

        Raises:
            LogUnavailable: none does.
        """
        raise NotImplementedError

    async def _ask(self, endpoint: Endpoint, *command: str) -> Any:
        """Ask one server; while somebody follows, its connection is kept for the next time."""
        connection, self._kept = self._kept, None
        if connection is not None and (connection.endpoint != endpoint or connection.closed.done()):
            connection.abort()
            connection = None
        answered = False
        try:
            if connection is None:
                connection = await _open(endpoint)
            reply = await _call(connection, *command)
            answered = True
            return reply
        finally:
            if answered and self._followers:
                self._kept = connection
            elif connection is not None:
                connection.abort()

    async def _ask_once(self, endpoint: Endpoint, *command: str) -> Any:
        connection = await _open(endpoint)
        try:
            return await _call(connection, *command)
        finally:
            connection.abort()


class _Sentinel(_Asking):
    """The master that the sentinels name, once it says itself that it is the master."""

    mode = Mode.SENTINEL
    poll_seconds = SENTINEL_POLL_SECONDS

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._sentinels = list(address.seeds)
        self._master: Endpoint | None = None
        self._suspected = False
        """Somebody could not use the master: have it say again that it is one."""

    def lost(self, endpoint: Endpoint) -> None:
        self._suspected = True
        super().lost(endpoint)

    async def endpoint_for(self, slot: int | None = None) -> Endpoint:
        await self._fresh()
        if self._master is None:
            raise LogUnavailable("no sentinel knows the master")
        return self._master

    def known(self, slot: int | None) -> Endpoint | None:
        return self._master

    async def nodes(self) -> tuple[Endpoint, ...]:
        return (await self.endpoint_for(),)

    async def _ask_all(self) -> None:
        last = LogUnavailable("no sentinel knows the master")
        for sentinel in tuple(self._sentinels):
            try:
                master = await self._master_by(sentinel)
            except LogUnavailable as exc:
                last = exc
                continue
            # The one that answered is asked first next time.
            self._sentinels.remove(sentinel)
            self._sentinels.insert(0, sentinel)
            if master != self._master:
                self._master = master
                self._changed()
            return
        raise last

    async def _master_by(self, sentinel: Endpoint) -> Endpoint:
        service = self.address.service or ""
        reply = await self._ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
        if not reply:
            raise LogUnavailable(f"the sentinel {sentinel.label} does not know the service {service!r}")
        master = self.address.data.at(_text(reply[0]), int(reply[1]))
        if master == self._master and not self._suspected:
            return master
        role = await self._ask_once(master, "ROLE")
        if role[0] != b"master":
            raise LogUnavailable(f"{master.label} is not the master yet")
        self._suspected = False
        return master


class _Cluster(_Asking):
    """The masters of the 16 384 slots."""

    mode = Mode.CLUSTER
    poll_seconds = CLUSTER_POLL_SECONDS

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._slots: list[Endpoint | None] = [None] * SLOTS
        self._nodes: tuple[Endpoint, ...] = ()

    def slot(self, key: str | bytes) -> int:
        return key_slot(key.encode() if isinstance(key, str) else key)

    async def endpoint_for(self, slot: int | None = None) -> Endpoint:
        await self._fresh()
        node = self.known(slot)
        if node is None:
            self._stale = True
            raise LogUnavailable("no server of the cluster has this slot")
        return node

    def known(self, slot: int | None) -> Endpoint | None:
        return self._slots[slot] if slot is not None else next(iter(self._nodes), None)

    async def nodes(self) -> tuple[Endpoint, ...]:
        await self._fresh()
        return self._nodes

    def redirected(self, error: ReplyError, endpoint: Endpoint) -> Endpoint | None:
        words = error.message.split(" ")
        if error.code not in ("MOVED", "ASK") or len(words) < 3:
            if error.code in ("READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"):
                self.lost(endpoint)
            return None
        host, _, port = words[2].rpartition(":")
        node = self.address.data.at(host.strip("[]") or endpoint.host, int(port))
        if error.code == "MOVED":
            self._slots[int(words[1])] = node
            self.lost(endpoint)
        return node

    async def _ask_all(self) -> None:
        last = LogUnavailable("no server of the cluster answers")
        known = random.sample(self._nodes, len(self._nodes))
        first = (self._kept.endpoint,) if self._kept is not None else ()
        for node in dict.fromkeys((*first, *known, *self.address.seeds)):
            try:
                reply = await self._ask(node, "CLUSTER", "SLOTS")
            except LogUnavailable as exc:
                last = exc
                continue
            if reply:
                self._learn(_ranges(reply, node, self.address.data))
                return
            last = LogUnavailable(f"{node.label} knows no slots")
        raise last

    def _learn(self, ranges: Iterable[tuple[int, int, Endpoint]]) -> None:
        slots: list[Endpoint | None] = [None] * SLOTS
        nodes: dict[Endpoint, None] = {}
        for first, last, node in ranges:
            slots[first : last + 1] = [node] * (last + 1 - first)
            nodes[node] = None
        changed = slots != self._slots or tuple(nodes) != self._nodes
        self._slots, self._nodes = slots, tuple(nodes)
        if changed:
            self._changed()


async def _open(endpoint: Endpoint) -> Connection:
    deadline = asyncio.get_running_loop().time() + ASK_SECONDS
    return await Connection.open(endpoint, deadline=deadline, name="tailrace-topology")


async def _call(connection: Connection, *command: str) -> Any:
    try:
        return await connection.call(*command, deadline=asyncio.get_running_loop().time() + ASK_SECONDS)
    except ReplyError as exc:
        raise LogUnavailable(f"{connection.endpoint.label} does not say who has the keys: {exc.code}") from exc


def _ranges(reply: list[Any], asked: Endpoint, login: Endpoint) -> Iterable[tuple[int, int, Endpoint]]:
    for first, last, master, *_ in sorted(reply, key=lambda entry: entry[0]):
        host = _text(master[0] or b"")
        if host != "?":  # the server itself does not know where that node is
            yield first, last, login.at(host or asked.host, int(master[1]))


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def open_topology(url: str | Address) -> Topology:
    """The topology for a Redis URL (see endpoint.py). Nothing is connected yet.

    Raises:
        ConfigError: the URL cannot be used.
    """
    address = url if isinstance(url, Address) else Address.parse(url)
    if address.mode is Mode.SENTINEL:
        return _Sentinel(address)
    if address.mode is Mode.CLUSTER:
        return _Cluster(address)
    if len(address.seeds) != 1:
        raise ConfigError("a standalone server is one server")
    return Topology(address)
