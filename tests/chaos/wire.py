"""What readers and publishers need to talk to a gateway; light, because a publisher that is killed imports it too."""

from __future__ import annotations

from collections.abc import Callable

import httpx
from websockets.exceptions import ConnectionClosed, InvalidHandshake

__all__ = ["LOST", "Url"]

Url = Callable[[], str]
"""One of the gateways; another one each time."""

LOST = (OSError, EOFError, TimeoutError, httpx.HTTPError, ConnectionClosed, InvalidHandshake)
"""How a connection may end without anybody being wrong."""
