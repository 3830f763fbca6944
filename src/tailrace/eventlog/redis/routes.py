"""The nodes of a log: which connection serves a stream's slot."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from tailrace.errors import LogUnavailable
from tailrace.eventlog.redis.connection import ReplyError
from tailrace.eventlog.redis.endpoint import Endpoint, Mode
from tailrace.eventlog.redis.node import Node
from tailrace.eventlog.redis.topology import Topology

__all__ = ["Routes"]

LEFT_SECONDS = 10.0
"""A server of a Cluster that cannot be reached for so long, and that no other names, has left."""


class Routes:
    """One node off Cluster, which follows the master; on Cluster one per server, made when first needed.

    Args:
        topology: who has what.
        name: client name of the connections.
    """

    def __init__(self, topology: Topology, *, name: str) -> None:
        self.on_up: Callable[[Node], None] = lambda _: None
        self.on_down: Callable[[Node], None] = lambda _: None
        self._topology = topology
        self._name = name
        self._cluster = topology.mode is Mode.CLUSTER
        self._nodes: dict[Endpoint | None, Node] = {}
        self._finding: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def fails_over(self) -> bool:
        """Whether another server may take over."""
        return self._topology.mode is not Mode.STANDALONE

    def slot(self, key: bytes) -> int | None:
        """The Cluster slot of a key; None off Cluster."""
        return self._topology.slot(key)

    def known(self, slot: int | None) -> Node | None:
        """The slot's node, as far as is known without asking."""
        if not self._cluster:
            return self._node(None)
        endpoint = self._topology.known(slot)
        return None if endpoint is None else self._node(endpoint)

    def find(self, slot: int | None, found: Callable[[Node | LogUnavailable], None]) -> None:
        """Ask for the slot's node; `found` is called with the answer, from another loop turn."""
        task = asyncio.get_running_loop().create_task(self._find(slot, found), name="find node")
        self._finding.add(task)
        task.add_done_callback(self._finding.discard)

    async def locate(self, slot: int | None) -> Node:
        """The slot's node.

        Raises:
            LogUnavailable: nobody knows.
        """
        if not self._cluster:
            return self._node(None)
        return self._node(await self._topology.endpoint_for(slot))

    def redirected(self, error: ReplyError, node: Node) -> Node | None:
        """The node that an error reply names; the topology is told."""
        connection = node.connection
        if connection is None:
            return None
        endpoint = self._topology.redirected(error, connection.endpoint)
        if not self._cluster:
            if self.fails_over:
                # The master was made a replica: a new connection finds the new master.
                connection.abort()
            return None
        return None if endpoint is None else self._node(endpoint)

    async def aclose(self) -> None:
        """Give all connections back."""
        self._closed = True
        for task in self._finding:
            task.cancel()
        for node in self._nodes.values():
            node.close()
        for node in self._nodes.values():
            await node.wait_closed()

    async def _find(self, slot: int | None, found: Callable[[Node | LogUnavailable], None]) -> None:
        try:
            node: Node | LogUnavailable = await self.locate(slot)
        except LogUnavailable as exc:
            node = exc
        found(node)

    def _node(self, endpoint: Endpoint | None) -> Node:
        node = self._nodes.get(endpoint)
        if node is None:

            async def resolve() -> Endpoint:
                if endpoint is None:
                    return await self._topology.endpoint_for(None)
                if await self._has_left(endpoint, made):
                    self._forget(endpoint, made)
                return endpoint

            node = made = self._nodes[endpoint] = Node(self._topology, resolve, name=self._name)
            node.on_up = lambda node: self.on_up(node)
            node.on_down = lambda node: self.on_down(node)
        return node

    async def _has_left(self, endpoint: Endpoint, node: Node) -> bool:
        since = node.down_since
        if since is None or asyncio.get_running_loop().time() - since < LEFT_SECONDS:
            return False
        with contextlib.suppress(LogUnavailable):
            return endpoint not in await self._topology.nodes()
        return False

    def _forget(self, endpoint: Endpoint, node: Node) -> None:
        """Nobody tries to reach it for ever. A server that comes back under this address is a new one."""
        del self._nodes[endpoint]
        node.close()
        self.on_down(node)
