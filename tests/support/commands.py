"""The command line as a user runs it: a process, its output, its exit code; on a terminal if need be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["PROGRAM", "Command", "Result", "clean_environment", "on_terminal", "run_command", "started"]

PROGRAM = [sys.executable, "-m", "tailrace"]


class Result(msgspec.Struct, frozen=True):
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def records(self) -> list[dict[str, Any]]:
        """Lines of JSON."""
        return [json.loads(line) for line in self.lines]


def clean_environment(home: Path, **variables: str) -> dict[str, str]:
    """An environment in which nothing of this machine's settings is seen."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TAILRACE_TEST_SESSION") if name in os.environ}
    return {**kept, "HOME": str(home), "COLUMNS": "120", **variables}


async def run_command(
    *arguments: str,
    cwd: Path,
    env: dict[str, str],
    stdin: bytes = b"",
    seconds: float = 30.0,
    program: Sequence[str] = PROGRAM,
) -> Result:
    """Run a command to its end."""
    async with started(*arguments, cwd=cwd, env=env, program=program) as command:
        async with asyncio.timeout(seconds):
            out, err = await command.process.communicate(stdin)
        assert command.process.returncode is not None
        return Result(command.process.returncode, out.decode(), err.decode())


class Command:
    """A command that runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self, seconds: float = 20.0) -> str:
        """The next line of its output."""
        assert self.process.stdout is not None
        async with asyncio.timeout(seconds):
            return (await self.process.stdout.readline()).decode().rstrip("\n")

    async def until(self, pattern: str, seconds: float = 20.0) -> str:
        """Read lines until one matches."""
        while (line := await self.line(seconds)) or not self.process.stdout.at_eof():  # type: ignore[union-attr]
            if re.search(pattern, line):
                return line
        raise AssertionError(f"it ended before it said {pattern!r}")

    async def end(self, seconds: float = 30.0) -> Result:
        """Wait for its end."""
        async with asyncio.timeout(seconds):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return Result(self.process.returncode, out.decode(), err.decode())

    def send(self, number: int) -> None:
        self.process.send_signal(number)


@asynccontextmanager
async def started(
    *arguments: str, cwd: Path, env: dict[str, str], program: Sequence[str] = PROGRAM
) -> AsyncIterator[Command]:
    """Start a command in a session of its own; at the end it is killed if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *program,
        *arguments,
        cwd=cwd,
        env=env,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 24,
        start_new_session=True,
    )
    try:
        yield Command(process)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


async def on_terminal(
    *arguments: str,
    cwd: Path,
    env: dict[str, str],
    typed: bytes = b"",
    typed_after: bytes = b"",
    seconds: float = 30,
) -> Result:
    """Run a command whose input and output are one terminal; `out` is all that the terminal shows.

    `typed` is typed at once, or when `typed_after` is to be read.
    """

    def run() -> Result:
        master, slave = pty.openpty()
        process = subprocess.Popen(
            [*PROGRAM, *arguments],
            cwd=cwd,
            env=env | {"TERM": "xterm-256color"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        shown = bytearray()
        left = typed
        try:
            while True:
                if left and typed_after in shown:
                    os.write(master, left)
                    left = b""
                try:
                    data = os.read(master, 65_536)
                except OSError:
                    break
                if not data:
                    break
                shown.extend(data)
            return Result(process.wait(seconds), shown.decode(errors="replace"), "")
        finally:
            os.close(master)
            if process.poll() is None:
                process.kill()
                process.wait()

    async with asyncio.timeout(seconds + 5):
        return await asyncio.to_thread(run)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
