"""A client may be gone before it is accepted."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest
from uvicorn.protocols.utils import ClientDisconnected

from tailrace.transports.ws_protocol import RawWebSocketProtocol, WsOffer, _offering


async def test_a_connection_that_closes_before_it_is_accepted_ends_the_application_like_one_that_is_lost() -> None:
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    sent: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "{}"})

    async def send(message: Any) -> None:
        sent.append(message["type"])

    offer = WsOffer(cast("RawWebSocketProtocol", SimpleNamespace(transport=transport)))
    transport.close()
    with theirs, pytest.raises(ClientDisconnected):
        await _offering(app, offer)({"extensions": {}}, None, send)

    assert sent == ["websocket.accept"]
