"""One connection to one server: an asyncio protocol around the hiredis reader.

Rules of this file
1. Replies are matched to commands in order. A waiter that was cancelled keeps its place: its reply is read and dropped.
2. Nothing is retried here, and nothing reconnects. When the connection is gone every waiter is told, with `written`:
   False means that the server cannot have seen the command; True means that nobody knows.
3. Commands of one loop turn leave in one write. A command that was cancelled before that is never sent.
4. RESP2 (Redis 5.0 speaks nothing newer). With `on_push` every reply without a waiter is a push.
5. Passwords appear in no repr and in no exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import hiredis

from tailrace.errors import LogTimeout, LogUnavailable
from tailrace.eventlog.redis.endpoint import Endpoint

__all__ = ["Arg", "CommandFailed", "Connection", "ConnectionLost", "LoginRefused", "ReplyError", "ReplyLate"]

Arg: TypeAlias = bytes | str | int

MAX_UNSENT_BYTES = 64 * 1_048_576
"""What may wait for a server that does not read; over it, commands fail as not written."""
REPLIES_PER_TURN = 1_000
"""Replies or pushed records handled before the other connections of the loop have a turn."""


class ReplyError(Exception):
    """The server answered with an error. `code` is its first word: MOVED, NOSCRIPT, OOM, WRONGTYPE, …"""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = message.partition(" ")[0]


class CommandFailed(LogUnavailable):
    """A command got no reply."""

    def __init__(self, detail: str = "", *, written: bool = False, **data: Any) -> None:
        super().__init__(detail, **data)
        self.written = written
        """False: the server cannot have executed it. True: it may have, or may yet."""


class ConnectionLost(CommandFailed):
    """The connection is gone."""


class ReplyLate(CommandFailed, LogTimeout):
    """The deadline passed before the reply came."""


class LoginRefused(LogUnavailable):
    """The server is there but does not let us in: wrong password, database, or too many clients."""


_Waiter: TypeAlias = "asyncio.Future[Any] | None"


class Connection(asyncio.Protocol):
    """A logged-in connection; made by `open`.

    Deadlines are points of the loop's clock (`loop.time() + seconds`), so that one can span several steps.
    """

    def __init__(self, endpoint: Endpoint, on_push: Callable[[Any], int] | None = None) -> None:
        self.endpoint = endpoint
        self.version: tuple[int, ...] = (5, 0, 0)
        """The server's version; (5, 0, 0) stands for all that are older than 6.0."""
        self.is_sentinel = False
        """Whether it said that it is one; before 6.0 servers do not say."""
        self.last_received: float = 0.0
        """When the server last said anything, on the loop's clock."""
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=ReplyError)
        self._transport: asyncio.Transport | None = None
        self._on_push = on_push
        self._out: list[tuple[bytes, tuple[_Waiter, ...]]] = []
        self._out_bytes = 0
        self._unwritten_calls: set[_Waiter] = set()
        self._flush_due = False
        self._paused = False
        self._draining = False
        self._waiting: deque[_Waiter] = deque()
        self._closed: asyncio.Future[None] = self._loop.create_future()

    @classmethod
    async def open(
        cls,
        endpoint: Endpoint,
        *,
        deadline: float,
        on_push: Callable[[Any], int] | None = None,
        name: str | None = None,
    ) -> Connection:
        """Connect, log in, choose the database and set the client's name.

        Args:
            endpoint: where to.
            deadline: for all steps together, on the loop's clock.
            on_push: makes this a connection for subscriptions: use `post`, and every reply comes here, a list,
                or a `ReplyError`. It returns how much work that was: 1 for little, or a number of records.
            name: client name, instead of the endpoint's.

        Raises:
            LoginRefused: the server answered and said no.
            LogUnavailable: no connection (LogTimeout: in time), or the server is still loading its data.
            ConfigError: the TLS files cannot be used.
        """
        self: Connection | None = None
        ready = False
        try:
            async with asyncio.timeout_at(deadline):
                self = await cls._connect(endpoint, on_push)
                await self._login(name or endpoint.client_name)
            ready = True
            return self
        except TimeoutError as exc:
            raise LogTimeout(f"{endpoint.label} did not answer in time") from exc
        except (OSError, UnicodeError) as exc:
            raise LogUnavailable(f"{endpoint.label} cannot be reached: {_reason(exc)}") from exc
        finally:
            if self is not None and not ready:
                self.abort()

    @classmethod
    async def _connect(cls, endpoint: Endpoint, on_push: Callable[[Any], int] | None) -> Connection:
        loop = asyncio.get_running_loop()
        tls = endpoint.tls
        context = await asyncio.to_thread(tls.context) if tls is not None else None
        name = (tls.server_name or endpoint.host) if tls is not None else None
        if endpoint.path is not None:
            _, self = await loop.create_unix_connection(lambda: cls(endpoint, on_push), endpoint.path)
        else:
            _, self = await loop.create_connection(
                lambda: cls(endpoint, on_push), endpoint.host, endpoint.port, ssl=context, server_hostname=name
            )
        return self

    async def _login(self, name: str) -> None:
        endpoint = self.endpoint
        login = (endpoint.username or "default", endpoint.password) if endpoint.password is not None else None
        hello = self.send("HELLO", 2, *(("AUTH", *login) if login else ()), "SETNAME", name)
        checks = [self.send("SELECT", endpoint.db)] if endpoint.db else []
        checks.append(self.send("PING"))
        try:
            self._read_hello(await hello)
        except ReplyError as exc:
            # Redis 5.0's message would repeat the arguments, and with them the password: it is never shown.
            if "unknown command" not in exc.message.lower():
                raise LoginRefused(f"{endpoint.label} refused the login: {exc.code}") from None
            checks = self._login_5(login, name)
        for check in checks:
            try:
                await check
            except ReplyError as exc:
                if exc.code == "LOADING":
                    raise LogUnavailable(f"{endpoint.label} is loading its data") from exc
                # A minimal ACL user need not be allowed to PING; with MISCONF only writes are refused, and PING.
                if exc.code not in ("NOPERM", "MISCONF"):
                    raise LoginRefused(f"{endpoint.label} refused the connection: {exc.message}") from exc

    def _login_5(self, login: tuple[str, str] | None, name: str) -> list[asyncio.Future[Any]]:
        steps = []
        if login is not None:
            steps.append(self.send("AUTH", login[1]))
        steps.append(self.send("CLIENT", "SETNAME", name))
        if self.endpoint.db:
            steps.append(self.send("SELECT", self.endpoint.db))
        return [*steps, self.send("PING")]

    def _read_hello(self, reply: list[Any]) -> None:
        facts = dict(zip(reply[::2], reply[1::2], strict=False))
        version = cast("bytes", facts.get(b"version", b"6.0.0")).decode("ascii", "replace")
        self.version = tuple(int(part) for part in version.split(".") if part.isdigit()) or (6, 0, 0)
        self.is_sentinel = facts.get(b"mode") == b"sentinel"

    # -- commands ---------------------------------------------------------------------------------------------------

    def send(self, *args: Arg, asking: bool = False) -> asyncio.Future[Any]:
        """Queue a command; it is written at the end of this loop turn. Await the future for the reply.

        The future raises `ReplyError`, or `ConnectionLost` with `written`. Cancelling it is free: what was not yet
        written is never sent, and a reply that still comes is dropped. It need not be awaited.

        Args:
            args: the command's words.
            asking: put ASKING before it, for a Cluster slot on its way to this server.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        data = _pack(args)
        waiters: tuple[_Waiter, ...] = (future,)
        if asking:
            data, waiters = _pack(("ASKING",)) + data, (None, future)
        self._queue(data, waiters)
        return future

    def post(self, *args: Arg) -> None:
        """Queue a command whose replies are pushes (SUBSCRIBE and its kin; only with `on_push`)."""
        self._queue(_pack(args), ())

    async def call(self, *args: Arg, deadline: float, asking: bool = False) -> Any:
        """Send a command and return its reply.

        Cancelled after it was written: the server may execute it.

        Raises:
            ReplyError: the server's answer is an error.
            ReplyLate: no reply by then; `written` says whether the server may have seen the command.
            ConnectionLost: the connection is gone; `written` as above.
        """
        if deadline <= self._loop.time():
            raise ReplyLate(f"no time was left to ask {self.endpoint.label}", written=False)
        future = self.send(*args, asking=asking)
        self._unwritten_calls.add(future)
        try:
            async with asyncio.timeout_at(deadline):
                return await future
        except TimeoutError:
            written = future not in self._unwritten_calls
            raise ReplyLate(f"{self.endpoint.label} did not answer in time", written=written) from None
        finally:
            self._unwritten_calls.discard(future)

    @property
    def closed(self) -> asyncio.Future[None]:
        """Resolves when the connection is gone. Do not cancel it: `asyncio.shield` it, or use `asyncio.wait`."""
        return self._closed

    @property
    def waiting(self) -> int:
        """How many replies are owed."""
        return len(self._waiting)

    @property
    def unsent_bytes(self) -> int:
        """What the server has not taken yet."""
        transport = self._transport
        return self._out_bytes + (transport.get_write_buffer_size() if transport is not None else 0)

    def abort(self) -> None:
        """Give the connection up at once; its waiters fail with `ConnectionLost`."""
        if self._transport is not None:
            self._transport.abort()

    def __repr__(self) -> str:
        return f"<Connection {self.endpoint.label} {'closed' if self._closed.done() else 'open'}>"

    # -- writing ----------------------------------------------------------------------------------------------------

    def _queue(self, data: bytes, waiters: tuple[_Waiter, ...]) -> None:
        if self._closed.done():
            self._fail(waiters, ConnectionLost(f"the connection to {self.endpoint.label} is gone", written=False))
            return
        if self._out_bytes + len(data) > MAX_UNSENT_BYTES:
            self._fail(waiters, CommandFailed(f"{self.endpoint.label} does not read; too much waits", written=False))
            return
        self._out.append((data, waiters))
        self._out_bytes += len(data)
        if not self._flush_due and not self._paused:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        transport = self._transport
        if self._paused or transport is None or self._closed.done() or transport.is_closing():
            return
        out, self._out, self._out_bytes = self._out, [], 0
        chunks, calls = [], self._unwritten_calls
        for data, waiters in out:
            if waiters and cast("asyncio.Future[Any]", waiters[-1]).done():
                continue
            self._waiting.extend(waiters)
            calls.difference_update(waiters)
            chunks.append(data)
        if chunks:
            transport.write(b"".join(chunks) if len(chunks) > 1 else chunks[0])

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    # -- reading ----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        _tune(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        self.last_received = self._loop.time()
        self._reader.feed(data)
        if not self._draining:
            self._drain(REPLIES_PER_TURN)

    def _drain(self, limit: int) -> None:
        """Hand out replies, at most `limit`, and the rest in later turns of the loop."""
        gets, waiting, on_push = self._reader.gets, self._waiting, self._on_push
        try:
            while limit > 0:
                reply = gets()
                if reply is False:
                    return
                if waiting:
                    _settle(waiting.popleft(), reply)
                    limit -= 1
                elif on_push is not None:
                    limit -= on_push(reply)
                else:
                    self.abort()  # a reply that nobody asked for: the order can no longer be trusted
                    return
            self._yield_turn()
        except hiredis.ProtocolError:
            self.abort()

    def _yield_turn(self) -> None:
        if not self._closed.done() and self._transport is not None and not self._transport.is_closing():
            self._draining = True
            self._transport.pause_reading()
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._draining = False
        if self._closed.done() or self._transport is None:
            return
        self._drain(REPLIES_PER_TURN)
        if not self._draining and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._draining:
            self._drain(1 << 30)  # replies that arrived before the end are still replies
        reason = "" if exc is None else f": {_reason(exc)}"
        detail = f"the connection to {self.endpoint.label} was lost{reason}"
        self._closed.set_result(None)
        waiting, self._waiting = self._waiting, deque()
        out, self._out, self._out_bytes = self._out, [], 0
        for waiter in waiting:
            self._fail((waiter,), ConnectionLost(detail, written=True))
        for _, waiters in out:
            self._fail(waiters, ConnectionLost(detail, written=False))

    @staticmethod
    def _fail(waiters: tuple[_Waiter, ...], error: Exception) -> None:
        for waiter in waiters:
            _settle(waiter, error)


def _pack(args: tuple[Arg, ...]) -> bytes:
    packed: bytes = hiredis.pack_command(args)  # type: ignore[arg-type]  # its stub knows only tuples of one
    return packed


def _settle(waiter: _Waiter, reply: Any) -> None:
    if waiter is None or waiter.done():
        return
    if isinstance(reply, Exception):
        waiter.set_exception(reply)
        waiter.exception()  # a waiter that nobody awaits is no defect: do not report it
    else:
        waiter.set_result(reply)


def _reason(exc: BaseException) -> str:
    return getattr(exc, "strerror", None) or type(exc).__name__


def _tune(sock: Any) -> None:
    """Find dead peers in seconds, not hours, and never wait to fill a packet."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15_000)
