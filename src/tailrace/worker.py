"""A serving process as its supervisor has it: how it is started, and how it says that it serves.

Its settings go through a pipe, so that no secret is in its arguments or environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time

from pydantic import SecretStr

from tailrace.config import Settings

__all__ = ["Worker"]


class Worker:
    """One serving process."""

    def __init__(self, process: asyncio.subprocess.Process, started: asyncio.Future[None]) -> None:
        self.process = process
        self.started = started
        self.born = time.monotonic()

    @classmethod
    async def spawn(cls, settings: Settings) -> Worker:
        """Start a process that serves the settings' address together with others.

        Raises:
            OSError: not now: too many processes or files, or no memory.
        """
        with contextlib.ExitStack() as undo:
            inbox, settings_pipe = _pipe(undo)
            status_pipe, outbox = _pipe(undo)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tailrace.server", str(inbox), str(outbox), pass_fds=(inbox, outbox)
            )
            undo.pop_all()
        os.close(inbox)
        os.close(outbox)
        with os.fdopen(settings_pipe, "wb") as pipe, contextlib.suppress(BrokenPipeError):
            pipe.write(_for_child(settings))
        return cls(process, _told(status_pipe))

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


def _pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    reading, writing = os.pipe()
    undo.callback(os.close, reading)
    undo.callback(os.close, writing)
    return reading, writing


def _for_child(settings: Settings) -> bytes:
    """What was set, secrets included; only ever written to a child's pipe."""
    values = settings.model_dump(mode="json", exclude_unset=True)
    for name in values:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            values[name] = value.get_secret_value()
    return json.dumps(values).encode()


def _told(status_pipe: int) -> asyncio.Future[None]:
    """Done when the other end wrote a byte; cancelled when it was closed without one."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        loop.remove_reader(status_pipe)
        byte = os.read(status_pipe, 1)
        os.close(status_pipe)
        if told.done():
            return
        if byte:
            told.set_result(None)
        else:
            told.cancel()

    loop.add_reader(status_pipe, readable)
    return told
