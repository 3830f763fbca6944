"""Processes of a benchmark: built, started on a core, asked over their pipes, measured, ended."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeAlias

__all__ = [
    "Child",
    "Missing",
    "build",
    "child",
    "cores",
    "cpu_seconds",
    "free_port",
    "pinned",
    "private_folder",
    "rss_bytes",
    "write_calls",
]

FOLDER = Path(__file__).parent
Cores: TypeAlias = "set[int] | None"
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class Missing(Exception):
    """Something this benchmark needs is not on this machine; the text says what to do."""


def cores() -> tuple[Cores, Cores]:
    """One core for what is measured, the others for everything else; (None, None) on a single core."""
    mine = sorted(os.sched_getaffinity(0))
    return ({mine[0]}, set(mine[1:])) if len(mine) > 1 else (None, None)


@contextmanager
def pinned(on: Cores) -> Iterator[None]:
    """Keep this process on some cores for a while."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, on or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def build(name: str) -> Path:
    """Compile bench/<name>.c into bench/bin, unless that is newer than all C sources already.

    Raises:
        Missing: there is no C compiler.
    """
    source, binary = FOLDER / f"{name}.c", FOLDER / "bin" / name
    changed = max(file.stat().st_mtime for file in (source, *FOLDER.glob("*.h")))
    if binary.exists() and binary.stat().st_mtime > changed:
        return binary
    compiler = shutil.which("cc")
    if compiler is None:
        raise Missing("no C compiler: install the Debian packages gcc and libc6-dev")
    binary.parent.mkdir(exist_ok=True)
    fresh = binary.with_suffix(f".{os.getpid()}")
    subprocess.run([compiler, "-O2", "-Wall", "-o", str(fresh), str(source), "-lm"], check=True)
    fresh.replace(binary)
    return binary


async def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    return port


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, all threads, in nanoseconds where the kernel tells them."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """What a process keeps in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) * 1024


def write_calls(pid: int) -> int:
    """How often a process has written so far, to whatever; 0 where the kernel does not count it."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("syscw:"))
    return 0


class Child:
    """A started process that answers in lines."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process = process
        self._name = name

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self._process.returncode is not None

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    async def line(self, seconds: float) -> str:
        """Its next line of output.

        Raises:
            RuntimeError: it ended. TimeoutError: it said nothing.
        """
        assert self._process.stdout is not None
        async with asyncio.timeout(seconds):
            found = await self._process.stdout.readline()
        if not found:
            raise RuntimeError(f"{self._name} ended: {await self._process.wait()}")
        return found.decode().rstrip("\n")


@asynccontextmanager
async def child(
    argv: Sequence[str | Path],
    *,
    on: Cores = None,
    env: Mapping[str, str] | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> AsyncIterator[Child]:
    """Start a process on some cores and end it afterwards."""
    process = await asyncio.create_subprocess_exec(
        *map(str, argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **(env or {})},
        limit=1 << 20,
        preexec_fn=lambda: _prepare(on),
    )
    try:
        yield Child(process, Path(argv[0]).name)
    finally:
        if process.returncode is None:
            process.send_signal(stop)
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


def _prepare(on: Cores) -> None:
    """In the new process: many files, its cores, and an end with us, however we end."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if on:
        os.sched_setaffinity(0, on)


@asynccontextmanager
async def private_folder() -> AsyncIterator[Path]:
    """A folder with a short path (a unix socket's has at most 107 bytes), gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="tr-bench-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
