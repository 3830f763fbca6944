"""The server: uvicorn with our HTTP protocol, our drain and our signals; several processes on one port.

`serve` runs one process, `run_workers` a supervisor with several. Both return an exit code and end on SIGINT or
SIGTERM: stop accepting, send the readers away over the drain window, finish what is in flight, go. A second signal
goes at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import uvicorn

from tailrace.collector import rare_collections
from tailrace.config import Settings
from tailrace.errors import ConfigError
from tailrace.transports.rawhttp import RawHttpProtocol
from tailrace.transports.ws_protocol import RawWebSocketProtocol
from tailrace.worker import Worker

__all__ = ["EXIT_FAILED", "EXIT_STARTUP", "GatewayServer", "listener", "run_workers", "serve"]

log = logging.getLogger("tailrace.server")

EXIT_FAILED = 1
EXIT_STARTUP = 3
BACKLOG = 4_096
SIGNALS = (signal.SIGINT, signal.SIGTERM)
FINISH_SECONDS = 5.0
"""After the drain: how long requests in flight may still take."""


def listener(settings: Settings, *, shared: bool = False) -> socket.socket:
    """Bind the port; `shared` lets other processes bind it too (SO_REUSEPORT).

    Raises:
        ConfigError: the address cannot be bound, with what to do.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # Accepted connections inherit it: a stalled reader holds this much of the kernel's memory, not 4 MB.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.send_buffer_bytes)
    try:
        sock.bind((settings.host, settings.port))
    except OSError as exc:
        sock.close()
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {os.strerror(exc.errno or 0)}", port=settings.port
        ) from exc
    sock.setblocking(False)
    return sock


class GatewayServer(uvicorn.Server):
    """uvicorn's server with a drain of our own: its shutdown would wait for open streams for ever."""

    def __init__(
        self, config: uvicorn.Config, drain: Callable[[], Awaitable[None]], on_started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._drain = drain
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, drain, then let uvicorn finish the rest."""
        for server in self.servers:
            server.close()
        draining = asyncio.ensure_future(self._drain())
        while not draining.done() and not self.force_exit:
            await asyncio.wait((draining,), timeout=0.05)
        if not draining.done():
            draining.cancel()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals without raising them again afterwards: a drained server has succeeded."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """The first signal drains, the second one ends."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


def make_server(
    app: Any, settings: Settings, drain: Callable[[], Awaitable[None]], on_started: Callable[[], None]
) -> GatewayServer:
    """A server for any ASGI application that has tailrace in it."""
    limits = {
        "head_seconds": settings.head_timeout_seconds,
        "head_bytes": settings.max_head_bytes,
        "unsent_bytes": settings.max_unsent_bytes,
    }
    ws_limits = {"message_bytes": settings.max_frame_bytes, "unsent_bytes": settings.max_unsent_bytes}
    config = uvicorn.Config(
        app,
        http=type("GatewayHttpProtocol", (RawHttpProtocol,), limits),
        ws=type("GatewayWsProtocol", (RawWebSocketProtocol,), ws_limits),
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        interface="asgi3",
        lifespan="on",
        loop="uvloop",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(FINISH_SECONDS),
    )
    return GatewayServer(config, drain, on_started)


async def serve(
    settings: Settings,
    *,
    sock: socket.socket | None = None,
    on_started: Callable[[str], None] | None = None,
) -> int:
    """Serve until a signal comes, in this process. Return the exit code.

    Args:
        settings: what to serve.
        sock: a bound socket to use instead of the settings' address.
        on_started: called with the address when connections are accepted.

    Raises:
        ConfigError: the settings cannot work.
    """
    from tailrace.app import create_app

    bound = sock if sock is not None else listener(settings)
    try:
        app = create_app(settings)
        address = url_of(bound)

        async def drain() -> None:
            await app.state.gateway.drain(settings.drain_seconds)

        def started() -> None:
            log.info("listening", extra={"address": address})
            if on_started is not None:
                on_started(address)

        server = make_server(app, settings, drain, started)
        # A worker of ours that failed ends the process: better started again than half alive.
        app.state.gateway.on_crash = lambda: setattr(server, "should_exit", True)
        try:
            with rare_collections():
                await server.serve(sockets=[bound])
        except SystemExit as exc:
            return int(exc.code or 0)
        return EXIT_FAILED if app.state.gateway.failed else 0
    finally:
        bound.close()


def url_of(sock: socket.socket) -> str:
    """The address a bound socket can be reached at from this machine."""
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if sock.family == socket.AF_INET else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(main: Callable[[], Any]) -> int:
    """Run a coroutine function that answers an exit code, on uvloop."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return int(runner.run(main()))


# -- several processes -------------------------------------------------------------------------------------


class Supervisor:
    """Keeps N workers on one port: starts them again when they die, one by one on SIGHUP, ends with them."""

    def __init__(self, settings: Settings, on_started: Callable[[str], None] | None) -> None:
        self._settings = settings
        self._on_started = on_started
        self._workers: list[Worker] = []
        self._stopping = asyncio.Event()
        self._failed = False
        self._started = 0

    async def run(self) -> int:
        """Supervise until a signal comes or no worker can be started."""
        reserved = listener(self._settings, shared=True)
        settings = self._settings.model_copy(update={"port": reserved.getsockname()[1]})
        with reserved, self._signals():
            async with asyncio.TaskGroup() as group:
                for _ in range(settings.workers):
                    group.create_task(self._keep(settings, self._worker_started(url_of(reserved))))
                await self._stopping.wait()
                await self._end()
        return EXIT_FAILED if self._failed else 0

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._replace_all)
        try:
            yield
        finally:
            for number in (*SIGNALS, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            for worker in self._workers:
                worker.stop(signal.SIGKILL)
        self._stopping.set()

    def _replace_all(self) -> None:
        """A drained worker is started again by its keeper: spread over time, the port is never without one."""
        loop = asyncio.get_running_loop()
        for index, worker in enumerate(list(self._workers)):
            loop.call_later(index * (self._settings.drain_seconds + 2), worker.stop)

    async def _keep(self, settings: Settings, started: Callable[[asyncio.Future[None]], None]) -> None:
        pause = 0.5
        while not self._stopping.is_set():
            try:
                worker = await Worker.spawn(settings)
            except OSError as exc:
                # Too many processes or files, or no memory: that passes, and the other workers serve meanwhile.
                log.error("a worker cannot be started now", extra={"error": str(exc)})
                pause = await self._pause(pause)
                continue
            worker.started.add_done_callback(started)
            self._workers.append(worker)
            if self._stopping.is_set():
                worker.stop()  # it came too late to be ended with the others
            code = await worker.process.wait()
            self._workers.remove(worker)
            if self._stopping.is_set():
                return
            if not worker.started.done() or worker.started.cancelled():
                if code in (EXIT_STARTUP, 2):
                    log.error("a worker cannot start", extra={"exit_code": code})
                    self._failed = True
                    self._stopping.set()
                    return
            elif time.monotonic() - worker.born > 30:
                pause = 0.5
            log.warning("a worker ended and is started again", extra={"exit_code": code})
            pause = await self._pause(pause)

    async def _pause(self, seconds: float) -> float:
        """Wait, unless all end; answer for how long the next time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds * random.uniform(0.5, 1.0)):
                await self._stopping.wait()
        return min(seconds * 2, 15.0)

    def _worker_started(self, address: str) -> Callable[[asyncio.Future[None]], None]:
        def started(told: asyncio.Future[None]) -> None:
            if told.cancelled():
                return
            self._started += 1
            if self._started == self._settings.workers and self._on_started is not None:
                self._on_started(address)

        return started

    async def _end(self) -> None:
        for worker in self._workers:
            worker.stop()
        deadline = self._settings.drain_seconds + FINISH_SECONDS + 5
        waiting = [asyncio.create_task(worker.process.wait()) for worker in self._workers]
        if waiting:
            await asyncio.wait(waiting, timeout=deadline)
        for worker in self._workers:
            worker.stop(signal.SIGKILL)


async def run_workers(settings: Settings, *, on_started: Callable[[str], None] | None = None) -> int:
    """Serve with `settings.workers` processes on one port (SO_REUSEPORT) until a signal comes.

    A worker that dies is started again; the others' connections go on.

    Raises:
        ConfigError: the address cannot be bound.
    """
    return await Supervisor(settings, on_started).run()


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the supervisor dies (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() == 1:
        sys.exit(EXIT_FAILED)


def _worker(arguments: Sequence[str]) -> int:
    """A worker process: settings from one pipe, "started" to the other."""
    inbox, outbox = (int(argument) for argument in arguments)
    _die_with_parent()
    with os.fdopen(inbox, "rb") as pipe:
        settings = Settings(**json.loads(pipe.read()))

    def started(_address: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # the supervisor is gone, and its death signal on its way
            os.write(outbox, b"1")
        os.close(outbox)

    from tailrace.observe import configure_logging

    configure_logging(settings)
    sock = listener(settings, shared=True)
    return run(lambda: serve(settings, sock=sock, on_started=started))


if __name__ == "__main__":
    sys.exit(_worker(sys.argv[1:]))
