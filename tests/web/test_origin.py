from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import HTTPConnection

from tailrace.web.origin import ClientAddress, OriginPolicy

PROXIES = ("10.0.0.0/8", "::1", "fd00::/8")


def connection(peer: str | None, *headers: tuple[str, str], scheme: str = "http") -> HTTPConnection:
    scope: dict[str, Any] = {
        "type": "http",
        "scheme": scheme,
        "path": "/",
        "query_string": b"",
        "server": ("test", 80),
        "client": (peer, 1) if peer is not None else None,
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
    }
    return HTTPConnection(scope)


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("1.2.3.4", [], "1.2.3.4"),
        ("1.2.3.4", ["9.9.9.9"], "1.2.3.4"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["9.9.9.9"], "9.9.9.9"),
        ("10.0.0.1", ["6.6.6.6, 9.9.9.9"], "9.9.9.9"),
        ("10.0.0.1", ["6.6.6.6, 9.9.9.9, 10.2.2.2"], "9.9.9.9"),
        ("10.0.0.1", ["6.6.6.6", "9.9.9.9"], "9.9.9.9"),
        ("10.0.0.1", ["127.0.0.1, 9.9.9.9"], "9.9.9.9"),
        ("10.0.0.1", ["9.9.9.9:443"], "9.9.9.9"),
        ("10.0.0.1", ["garbage"], "10.0.0.1"),
        ("10.0.0.1", ["9.9.9.9, garbage"], "10.0.0.1"),
        ("10.0.0.1", ["9.9.9.9, , 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("::ffff:10.0.0.1", ["9.9.9.9"], "9.9.9.9"),
        ("::1", ["2001:db8:1:2:3::4"], "2001:db8:1:2::/64"),
        ("2001:db8:1:2:3::4", [], "2001:db8:1:2::/64"),
        ("10.0.0.1", ["[2001:db8:1:2:3::4]:80"], "2001:db8:1:2::/64"),
        ("10.0.0.1", ["fe80::1%eth0"], "fe80::/64"),
        (None, ["9.9.9.9"], "-"),
        ("", ["9.9.9.9"], "-"),
    ],
)
def test_address_is_the_right_most_one_that_no_trusted_proxy_vouches_for(
    peer: str | None, forwarded: list[str], address: str
) -> None:
    headers = [("X-Forwarded-For", line) for line in forwarded]

    assert ClientAddress(PROXIES).of(connection(peer, *headers)) == address


def test_rotated_header_is_still_one_address() -> None:
    addresses = ClientAddress(PROXIES)

    spoofs = [f"{number >> 8}.{number & 255}.1.1" for number in range(1_000)]
    assert {addresses.of(connection("10.0.0.1", ("X-Forwarded-For", f"{each}, 9.9.9.9"))) for each in spoofs} == {
        "9.9.9.9"
    }
    lines = [[("X-Forwarded-For", each), ("X-Forwarded-For", "9.9.9.9")] for each in (*spoofs, "127.0.0.1", "::1")]
    assert {addresses.of(connection("10.0.0.1", *each)) for each in lines} == {"9.9.9.9"}
    assert {addresses.of(connection("8.8.8.8", ("X-Forwarded-For", each))) for each in (*spoofs, "127.0.0.1")} == {
        "8.8.8.8"
    }


def test_proxy_on_a_socket_file_can_be_trusted() -> None:
    forwarded = [("X-Forwarded-For", "6.6.6.6, 9.9.9.9"), ("X-Forwarded-Proto", "https")]

    assert ClientAddress(("unix",)).of(connection(None, *forwarded)) == "9.9.9.9"
    assert ClientAddress(("unix",)).scheme(connection(None, *forwarded)) == "https"
    assert ClientAddress(PROXIES).scheme(connection(None, *forwarded)) == "http"
    assert ClientAddress(("unix",)).known
    assert not ClientAddress(()).known


@pytest.mark.parametrize(
    ("origin", "host", "scheme", "own"),
    [
        ("http://app.example", "app.example", "http", True),
        ("http://app.example:80", "app.example", "http", True),
        ("https://app.example", "app.example", "https", True),
        ("https://app.example", "app.example", "wss", True),
        ("http://APP.example", "app.example", "http", True),
        ("http://[::1]:8080", "[::1]:8080", "http", True),
        ("https://app.example", "app.example", "http", False),
        ("http://app.example:8080", "app.example", "http", False),
        ("http://app.example.evil.example", "app.example", "http", False),
        ("http://app.example@evil.example", "app.example", "http", False),
        ("http://evil.example/app.example", "app.example", "http", False),
        ("null", "app.example", "http", False),
        ("null", "null", "http", False),
        ("", "", "http", False),
        ("file://", "", "http", False),
        ("http://app.example:99999", "app.example", "http", False),
        ("http://[::1", "[::1", "http", False),
    ],
)
def test_own_origin_is_the_same_scheme_host_and_port(origin: str, host: str, scheme: str, own: bool) -> None:
    policy = OriginPolicy((), (), ClientAddress(()))

    assert policy.is_own(connection("1.1.1.1", ("Host", host), scheme=scheme), origin) is own
