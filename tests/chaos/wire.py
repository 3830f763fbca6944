"""What readers and publishers need to talk to a gateway; light, because a publisher that is killed imports it too."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable

import httpx
from websockets.exceptions import ConnectionClosed, InvalidHandshake

__all__ = ["LOST", "Url", "http_client"]

Url = Callable[[], str]
"""One of the gateways; another one each time."""

LOST = (OSError, EOFError, TimeoutError, httpx.HTTPError, ConnectionClosed, InvalidHandshake)
"""How a connection may end without anybody being wrong."""

if importlib.util.find_spec("sniffio") is None:
    # httpx tries to import it before every request, and searches the disk each time: 3 ms of a run's CPU.
    sys.modules["sniffio"] = None  # type: ignore[assignment]


def http_client(token: str = "", *, timeout: float = 20) -> httpx.AsyncClient:
    """A client without certificates: to load them takes 50 ms, and readers are made anew all the time."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return httpx.AsyncClient(headers=headers, timeout=timeout, verify=False)
