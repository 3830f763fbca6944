"""Redis URLs."""

from __future__ import annotations

import pytest

from tailrace.errors import ConfigError
from tailrace.eventlog.redis.endpoint import Address, Mode


@pytest.mark.parametrize(
    ("url", "label", "db"),
    [
        ("redis://localhost", "localhost:6379", 0),
        ("redis://:6380", None, None),
        ("redis://10.0.0.1:7000/2", "10.0.0.1:7000", 2),
        ("redis://[::1]:7000", "[::1]:7000", 0),
        ("valkey://h?db=4", "h:6379", 4),
        ("unix:///tmp/a%20b.sock?db=1", "unix:/tmp/a b.sock", 1),
        ("redis://h?socket_timeout=5&decode_responses=true", "h:6379", 0),
    ],
)
def test_one_server(url: str, label: str | None, db: int | None) -> None:
    if label is None:
        with pytest.raises(ConfigError):
            Address.parse(url)
        return

    address = Address.parse(url)

    assert address.mode is Mode.STANDALONE
    assert (address.data.label, address.data.db) == (label, db)


def test_a_login_is_decoded_and_never_shown() -> None:
    address = Address.parse("rediss://us%40er:p%3Ass%2Fw@h:1/0")

    assert (address.data.username, address.data.password) == ("us@er", "p:ss/w")
    assert "p:ss" not in repr(address)
    assert "p:ss" not in str(address.data)


def test_sentinels_have_their_own_login() -> None:
    address = Address.parse("rediss+sentinel://u:data@a,b:1,c:2/mymaster/3?sentinel_password=watch")

    assert address.mode is Mode.SENTINEL
    assert [seed.label for seed in address.seeds] == ["a:26379", "b:1", "c:2"]
    assert {seed.password for seed in address.seeds} == {"watch"}
    assert {seed.username for seed in address.seeds} == {None}
    assert (address.data.username, address.data.password, address.data.db) == ("u", "data", 3)
    assert address.service == "mymaster"
    assert address.data.tls is not None


def test_a_cluster_has_several_seeds() -> None:
    address = Address.parse("redis+cluster://:pw@a,b:1")

    assert address.mode is Mode.CLUSTER
    assert [seed.label for seed in address.seeds] == ["a:6379", "b:1"]
    assert {seed.password for seed in address.seeds} == {"pw"}


def test_tls_options() -> None:
    tls = Address.parse(
        "rediss://h?ssl_ca_certs=/ca&ssl_certfile=/c&ssl_keyfile=/k&ssl_check_hostname=false&ssl_server_hostname=x"
    ).data.tls

    assert tls is not None
    assert (tls.ca_file, tls.cert_file, tls.key_file, tls.server_name) == ("/ca", "/c", "/k", "x")
    assert (tls.verify, tls.check_hostname) == (True, False)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://h",
        "redis://h:port",
        "redis://h:99999",
        "redis://h/db",
        "redis://h/1/2",
        "redis://a,b",
        "redis://h?no_such_option=1",
        "redis://h?ssl_ca_certs=/ca",
        "rediss://h?ssl_cert_reqs=perhaps",
        "rediss://h?ssl_check_hostname=perhaps",
        "redis+cluster://h/1",
        "redis+sentinel://h",
        "redis+sentinel://h/a/b",
        "redis+sentinel://h/a/0/c",
        "unix://h/path",
        "unix://",
        "redis://user:pa/ss@h",
    ],
)
def test_what_cannot_work_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Address.parse(url)

    assert "pa/ss" not in str(caught.value)
    assert "localhost" not in str(caught.value)
