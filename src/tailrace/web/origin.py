"""Where a request comes from: origins of pages, addresses behind proxies.

Rules of this file
1. An Origin is compared as a whole with our own and the listed ones; nothing is matched by prefix, nothing reflected.
2. What a browser sends by itself (a cookie) counts only for requests of our own pages.
3. `X-Forwarded-For` is believed from the right, as far as trusted proxies wrote it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from tailrace.errors import Forbidden

__all__ = ["ClientAddress", "OriginPolicy"]

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class OriginPolicy:
    """Which pages may talk to us."""

    def __init__(self, allowed: Sequence[str], hosts: Sequence[str], addresses: ClientAddress) -> None:
        self._allowed = frozenset(origin.lower().rstrip("/") for origin in allowed)
        self._hosts = tuple(host.lower() for host in hosts)
        self._addresses = addresses

    def is_listed(self, origin: str) -> bool:
        """Whether the settings name this origin."""
        return origin.lower() in self._allowed

    def is_own(self, connection: HTTPConnection, origin: str) -> bool:
        """Whether this origin is where the request itself went: same scheme, host and port."""
        own = _parts(f"{self._addresses.scheme(connection)}://{connection.headers.get('host', '')}")
        return own is not None and _parts(origin) == own

    def host_is_ours(self, connection: HTTPConnection) -> bool:
        """Whether the request names a host that this server answers to."""
        if not self._hosts:
            return True
        host = connection.headers.get("host", "").lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        return any(name == each or (each.startswith("*.") and name.endswith(each[1:])) for each in self._hosts)

    def check_websocket(self, connection: HTTPConnection) -> None:
        """Raises: Forbidden when a page of a foreign origin opens the WebSocket."""
        origin = connection.headers.get("origin")
        if origin is not None and not self.is_listed(origin) and not self.is_own(connection, origin):
            raise Forbidden("this origin may not open a WebSocket here")

    def check_cookie(self, connection: HTTPConnection) -> None:
        """Refuse a cookie that a foreign page made the browser send.

        Raises:
            Forbidden: the request is not of a page of our own origin.
        """
        origin = connection.headers.get("origin")
        site = connection.headers.get("sec-fetch-site")
        if origin is not None:
            allowed = self.is_own(connection, origin)
        elif connection.scope["type"] == "websocket" or connection.scope.get("method") not in _SAFE:
            # Browsers send Origin with both; a script without a browser has no use for a cookie.
            allowed = False
        else:
            allowed = True
        if not allowed or (site is not None and site not in ("same-origin", "none")):
            raise Forbidden("a cookie is accepted from pages of this origin only")


def _parts(origin: str) -> tuple[str, str, int] | None:
    try:
        split = urlsplit(origin)
        port = split.port
    except ValueError:
        return None
    scheme = {"ws": "http", "wss": "https"}.get(split.scheme, split.scheme)
    if not split.hostname or split.path not in ("", "/") or split.query or split.username is not None:
        return None
    return scheme, split.hostname, port if port is not None else _DEFAULT_PORTS.get(scheme, 0)


class ClientAddress:
    """Finds the address a connection counts for."""

    def __init__(self, trusted: Sequence[str]) -> None:
        self._trusted = tuple(ipaddress.ip_network(text, strict=False) for text in trusted if text != "unix")
        self._trusts_socket_files = "unix" in trusted

    @property
    def known(self) -> bool:
        """Whether addresses can be told apart at all: without trusted proxies all may share one."""
        return bool(self._trusted) or self._trusts_socket_files

    def of(self, connection: HTTPConnection) -> str:
        """The right-most address that no trusted proxy vouches for; of IPv6 its /64. `-` for a socket file."""
        peer = connection.client.host if connection.client else ""
        hops = [part.strip() for line in connection.headers.getlist("x-forwarded-for") for part in line.split(",")]
        address = _address(peer)
        if address is None and hops and self._trusts_socket_files:
            address = _address(hops.pop())
        while address is not None and hops and self._is_trusted(address):
            forwarded = _address(hops.pop())
            if forwarded is None:
                break
            address = forwarded
        if address is None:
            return "-"
        if isinstance(address, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((address, 64), strict=False).network_address) + "/64"
        return str(address)

    def scheme(self, connection: HTTPConnection) -> str:
        """How the client spoke: what a trusted proxy says, else what this server saw."""
        peer = _address(connection.client.host) if connection.client else None
        trusted = self._is_trusted(peer) if peer is not None else self._trusts_socket_files
        proto = connection.headers.get("x-forwarded-proto", "").strip().lower()
        if trusted and proto in ("http", "https", "ws", "wss"):
            return proto
        return connection.url.scheme

    def _is_trusted(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return any(address.version == network.version and address in network for network in self._trusted)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
