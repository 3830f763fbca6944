"""Where Redis is: URLs and the endpoints in them.

    redis://[user:password@]host[:6379][/db]                       rediss:// with TLS (valkey:// and valkeys:// too)
    unix://[user:password@]/path/to.sock[?db=0]
    redis+sentinel://[user:password@]host[:26379],…/service[/db]   rediss+sentinel://; the login is the data servers',
                                                                   ?sentinel_username= &sentinel_password= is theirs
    redis+cluster://[user:password@]host[:6379],…                  rediss+cluster://

Options: `db`, `client_name`; with TLS `ssl_ca_certs`, `ssl_ca_path`, `ssl_ca_data`, `ssl_certfile`, `ssl_keyfile`,
`ssl_password` (of the key), `ssl_cert_reqs=required|none`, `ssl_check_hostname=true|false`, `ssl_server_hostname`.
User and password are percent-encoded. No error and no repr of this file shows any part of them.
"""

from __future__ import annotations

import ssl
from enum import StrEnum
from typing import NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from tailrace.errors import ConfigError

__all__ = ["Address", "Endpoint", "Mode", "Tls"]

_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})
_TLS_FIELDS = {
    "ssl_ca_certs": "ca_file",
    "ssl_ca_path": "ca_path",
    "ssl_ca_data": "ca_data",
    "ssl_certfile": "cert_file",
    "ssl_keyfile": "key_file",
    "ssl_password": "key_password",
    "ssl_server_hostname": "server_name",
}
# Tuning of other clients' pools, found in URLs that are shared with them; it has no meaning here.
_IGNORED = frozenset(
    {
        "decode_responses",
        "encoding",
        "health_check_interval",
        "max_connections",
        "protocol",
        "retry_on_timeout",
        "socket_connect_timeout",
        "socket_keepalive",
        "socket_timeout",
        "timeout",
    }
)


class Mode(StrEnum):
    """How the servers form a log."""

    STANDALONE = "standalone"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


class Tls(msgspec.Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """How to prove who the server is, and who we are."""

    ca_file: str | None = None
    ca_path: str | None = None
    ca_data: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    key_password: str | None = None
    server_name: str | None = None
    """The name to ask for and to check, when it is not the host that is connected to."""
    verify: bool = True
    check_hostname: bool = True

    def __repr__(self) -> str:
        return f"Tls(verify={self.verify}, check_hostname={self.check_hostname})"

    def context(self) -> ssl.SSLContext:
        """Read the files and make a context. Blocks: call it in a thread.

        Raises:
            ConfigError: a file cannot be read or is not what it should be.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file, capath=self.ca_path, cadata=self.ca_data)
            context.check_hostname = self.verify and self.check_hostname
            context.verify_mode = ssl.CERT_REQUIRED if self.verify else ssl.CERT_NONE
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file, self.key_password)
        except (OSError, ValueError) as exc:
            raise ConfigError(f"the TLS files of the Redis URL cannot be used: {type(exc).__name__}") from exc
        return context


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One server, and how to log in. Equal endpoints can share connections."""

    host: str = ""
    port: int = 0
    path: str | None = None
    """A unix socket, instead of host and port."""
    username: str | None = None
    password: str | None = None
    db: int = 0
    tls: Tls | None = None
    client_name: str = "tailrace"

    @property
    def label(self) -> str:
        """The address as people know it, without any secret."""
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def at(self, host: str, port: int) -> Endpoint:
        """The same login on another server."""
        return msgspec.structs.replace(self, host=host, port=port, path=None)

    def __repr__(self) -> str:
        return f"Endpoint({self.label}, db={self.db}, tls={self.tls is not None})"

    __str__ = __repr__


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed URL."""

    mode: Mode
    seeds: tuple[Endpoint, ...]
    """The servers named in the URL; for Sentinel, the sentinels."""
    data: Endpoint
    """Login, database and TLS of the data servers; its host is the first seed's."""
    service: str | None = None
    """The name under which the sentinels know the master."""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a URL.

        Raises:
            ConfigError: not one of the forms at the head of this file. The text never quotes the URL.
        """
        try:
            parts = urlsplit(url)
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        except ValueError:
            _fail("it cannot be parsed")
        scheme = parts.scheme.replace("valkey", "redis", 1)
        tls_wanted = scheme.startswith("rediss")
        scheme = "redis" + scheme[6:] if tls_wanted else scheme
        login, _, hosts = parts.netloc.rpartition("@")
        username, _, password = login.partition(":")
        base = Endpoint(
            username=unquote(username) or None,
            password=unquote(password) or None,
            client_name=options.pop("client_name", "tailrace"),
            tls=_tls(options, wanted=tls_wanted),
        )
        if scheme == "unix":
            return _unix(base, hosts, unquote(parts.path), options)
        path = [unquote(part) for part in parts.path.split("/")[1:] if part]
        if scheme == "redis+sentinel":
            return _sentinel(base, hosts, path, options)
        if scheme not in ("redis", "redis+cluster"):
            _fail("its scheme is unknown")
        if len(path) > 1:
            _fail("its path is more than a database number")
        data = msgspec.structs.replace(base, db=_db(path, options))
        seeds = _endpoints(data, hosts, 6379)
        _no_more(options)
        if scheme == "redis+cluster":
            if data.db:
                _fail("a Cluster has only database 0")
            return cls(mode=Mode.CLUSTER, seeds=seeds, data=seeds[0])
        if len(seeds) != 1:
            _fail("it names several hosts; use redis+sentinel:// or redis+cluster://")
        return cls(mode=Mode.STANDALONE, seeds=seeds, data=seeds[0])


def _unix(base: Endpoint, hosts: str, path: str, options: dict[str, str]) -> Address:
    if hosts or not path:
        _fail("a unix socket is written unix:///path/to.sock")
    endpoint = msgspec.structs.replace(base, path=path, db=_db([], options))
    _no_more(options)
    return Address(mode=Mode.STANDALONE, seeds=(endpoint,), data=endpoint)


def _sentinel(base: Endpoint, hosts: str, path: list[str], options: dict[str, str]) -> Address:
    if not 1 <= len(path) <= 2:
        _fail("after the sentinels comes /service or /service/db")
    sentinel = msgspec.structs.replace(
        base,
        username=options.pop("sentinel_username", "") or None,
        password=options.pop("sentinel_password", "") or None,
    )
    data = msgspec.structs.replace(base, db=_db(path[1:], options))
    seeds = _endpoints(sentinel, hosts, 26379)
    _no_more(options)
    data = data.at(seeds[0].host, seeds[0].port)
    return Address(mode=Mode.SENTINEL, seeds=seeds, data=data, service=path[0])


def _endpoints(base: Endpoint, hosts: str, default_port: int) -> tuple[Endpoint, ...]:
    return tuple(base.at(*_host_port(part, default_port)) for part in (hosts or "localhost").split(","))


def _host_port(text: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit("//" + text)
        host, port = parts.hostname, parts.port
    except ValueError:
        _fail("a host or port in it cannot be read (are user and password percent-encoded?)")
    if not host or parts.path or parts.query or parts.username is not None:
        _fail("a host in it cannot be read (are user and password percent-encoded?)")
    return host, port if port is not None else default_port


def _db(path: list[str], options: dict[str, str]) -> int:
    text = options.pop("db", None) or (path[0] if path else "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        _fail("its database is not a number")
    return int(text)


def _tls(options: dict[str, str], *, wanted: bool) -> Tls | None:
    given = {field: options.pop(name) for name, field in _TLS_FIELDS.items() if name in options}
    requirement = options.pop("ssl_cert_reqs", "required").lower()
    check = options.pop("ssl_check_hostname", "true").lower()
    if requirement not in ("required", "optional", "none"):
        _fail("ssl_cert_reqs is required or none")
    if check not in _TRUE | _FALSE:
        _fail("ssl_check_hostname is true or false")
    if not wanted:
        if given:
            _fail("it has TLS options but its scheme is not rediss")
        return None
    return Tls(verify=requirement != "none", check_hostname=check in _TRUE, **given)


def _no_more(options: dict[str, str]) -> None:
    unknown = sorted(set(options) - _IGNORED)
    if unknown:
        _fail(f"the option {unknown[0][:40]!r} is unknown")


def _fail(why: str) -> NoReturn:
    raise ConfigError(f"the Redis URL cannot be used: {why}")
