"""One `tailrace exec`: the command's output becomes events, is shown here, and is delivered; then its exit code.

Rules of this file
1. What is read goes into the spool first and to our own output second: what was seen here reaches the log, also when
   this process is killed right after.
2. The command never waits for the server. It waits for our own reader, as it would without us, and for the disk.
3. When the spool is full, output is no longer recorded, and a `run.skipped` event says how much; the command goes on.
4. The exit code is the command's, whatever became of the delivery.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from tailrace.cli.run.child import Child
from tailrace.cli.run.lines import LineSplitter, Piece
from tailrace.client.spool import Entry, Spool, SpoolFile
from tailrace.core.codec import encode
from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.errors import WouldBlock

__all__ = ["Recorder", "Session", "epilogue"]

READ_BYTES = 65_536
IDLE_SECONDS = 0.25
"""A line that has begun is shown to readers when nothing follows for this long."""
LEFTOVER_SECONDS = 0.5
"""The command has ended, but something it started holds its output open: wait this long for more of it."""
MAX_DATA_BYTES = 1_048_576
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
SI_KERNEL = 128
"""siginfo's `si_code` of a signal that a terminal made."""


def epilogue(stream: StreamName, uid: str) -> list[Entry]:
    """What ends a run whose `exec` was killed: added by whoever delivers its spool."""
    lost = Event("run.lost", encode({"reason": "tailrace exec was killed"}, max_bytes=MAX_DATA_BYTES), f"{uid}-lost")
    return [Entry.of(stream, lost), Entry(str(stream))]


class Recorder:
    """Turns what happens to events of one run, in a spool that may fill up."""

    def __init__(self, spool: Spool, stream: StreamName, uid: str) -> None:
        self._spool = spool
        self._stream = stream
        self._uid = uid
        self.on_put: Callable[[], None] = _nothing
        """Called when there is something to deliver."""
        self._count = 0
        self.epoch: int | None = None
        """Of the run's claim, once it is registered."""
        self.closes = True
        """Whether the stream ends with the last event; else the registered run's end follows, and does that."""
        self.lines = 0
        self.skipped = 0
        """Pieces that could not be recorded and were not yet announced."""
        self._skipped_bytes = 0
        self.lost = 0
        """Pieces that could not be recorded at all."""

    def started(self, argv: Sequence[str], pid: int, *, terminal: bool) -> None:
        """The run begins."""
        data = {
            "argv": [_printable(each) for each in argv],
            "pid": pid,
            "cwd": _printable(os.getcwd()),
            "host": socket.gethostname(),
            "terminal": terminal,
            "at": _now(),
        }
        self._put([("run.started", data)])

    def output(self, name: str, pieces: Sequence[Piece]) -> None:
        """Lines, or parts of lines."""
        at = _now()
        self.lines += sum(not piece.partial for piece in pieces)
        if self._put([("run.output", piece.data(name, at)) for piece in pieces]):
            return
        self.skipped += len(pieces)
        self.lost += len(pieces)
        self._skipped_bytes += sum(len(piece.content) for piece in pieces)

    def exited(self, code: int, signal_name: str | None, seconds: float) -> None:
        """The run ends: the last events, which fit always, and the end of the stream."""
        data = {"exit_code": code, "signal": signal_name, "seconds": round(seconds, 3), "lines": self.lines}
        last = [*self._announcement(), ("run.exited", data | {"at": _now()})]
        entries = [*map(self._entry, last), *([Entry(str(self._stream))] if self.closes else [])]
        try:
            if isinstance(self._spool, SpoolFile):
                self._spool.finish(entries)
            else:
                self._spool.put(entries)
        except WouldBlock:
            # A full disk. A registered run's end is told all the same; else who takes the file over ends the stream.
            self.lost += len(last)
        self.on_put()

    def _put(self, events: list[tuple[str, dict[str, Any]]]) -> bool:
        entries = [self._entry(event) for event in (*self._announcement(), *events)]
        try:
            self._spool.put(entries)
        except WouldBlock:
            return False
        self.skipped = self._skipped_bytes = 0
        self.on_put()
        return True

    def _announcement(self) -> list[tuple[str, dict[str, Any]]]:
        if not self.skipped:
            return []
        return [("run.skipped", {"pieces": self.skipped, "bytes": self._skipped_bytes, "reason": "the spool was full"})]

    def _entry(self, event: tuple[str, dict[str, Any]]) -> Entry:
        self._count += 1
        type_, data = event
        made = Event(type_, encode(data, max_bytes=MAX_DATA_BYTES), f"{self._uid}-{self._count}")
        return Entry.of(self._stream, made, self.epoch)


class Session:
    """Runs the pumps of one command."""

    def __init__(self, child: Child, recorder: Recorder, *, grace_seconds: float, quiet: bool) -> None:
        self._child = child
        self._recorder = recorder
        self._grace = grace_seconds
        self._quiet = quiet
        self.before_end: Callable[[], Awaitable[None]] | None = None
        """Waited for when the command has ended, before that is said."""
        self._ending: asyncio.Task[None] | None = None
        self._signals = 0
        self._last_byte = 0.0

    async def run(self) -> int:
        """Read, record and show until the command has ended; return its exit code."""
        loop = asyncio.get_running_loop()
        begun = time.monotonic()
        stop_signals = self._take_signals(loop)
        self._child.begin_typing()
        typing = asyncio.create_task(self._pass_typing())
        pumps = [asyncio.create_task(self._pump(fd, name)) for fd, name in self._child.outputs.items()]
        try:
            await self._until_exit()
            await self._leftovers(pumps)
        finally:
            for task in (typing, *pumps, *([self._ending] if self._ending else [])):
                task.cancel()
            await asyncio.gather(typing, *pumps, return_exceptions=True)
            self._child.end_typing()
            stop_signals()
            for fd in self._child.outputs:
                os.close(fd)
        for pump in pumps:
            if not pump.cancelled() and (error := pump.exception()) is not None:
                raise error
        seconds = time.monotonic() - begun
        if self.before_end is not None:
            await self.before_end()
        self._recorder.exited(self._child.exit_code, self._child.signal_name, seconds)
        return self._child.exit_code

    def cancel(self) -> None:
        """Its run was cancelled: the command gets SIGTERM now, and SIGKILL after the grace time."""
        self._child.signal(signal.SIGTERM)
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._insist(signal.SIGTERM))

    @property
    def signal_name(self) -> str | None:
        """The signal that ended the command."""
        return self._child.signal_name

    async def _until_exit(self) -> None:
        """Wait for the process through a descriptor: no signal handler, and no thread where the kernel has these."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        try:
            fd = os.pidfd_open(self._child.process.pid)
        except OSError:
            await asyncio.to_thread(self._child.process.wait)
            return
        loop.add_reader(fd, _resolve, ended)
        try:
            await ended
        finally:
            loop.remove_reader(fd)
            os.close(fd)
        self._child.process.wait()

    async def _leftovers(self, pumps: Sequence[asyncio.Task[None]]) -> None:
        """What is still in the pipes; not the whole life of a background process that keeps them open."""
        waiting = set(pumps)
        self._last_byte = time.monotonic()
        while waiting and time.monotonic() - self._last_byte < LEFTOVER_SECONDS:
            _, waiting = await asyncio.wait(waiting, timeout=LEFTOVER_SECONDS / 5)

    # -- output --------------------------------------------------------------------------------------------

    async def _pump(self, fd: int, name: str) -> None:
        splitter = LineSplitter(terminal=self._child.terminal and os.isatty(fd))
        shown = (sys.stdout if name == "stdout" else sys.stderr).fileno()
        try:
            while data := await _read(fd, IDLE_SECONDS if splitter.waiting else None, splitter, self._recorder, name):
                self._last_byte = time.monotonic()
                pieces = splitter.feed(data)
                if pieces:
                    self._recorder.output(name, pieces)
                if not self._quiet:
                    await self._show(shown, data)
        finally:
            rest = splitter.close()
            if rest:
                self._recorder.output(name, rest)

    async def _show(self, fd: int, data: bytes) -> None:
        """Pass output through. Waits as the command itself would; a reader that is gone is not missed."""
        try:
            # A pipe that polls writable takes 4 096 bytes without waiting.
            if len(data) <= select.PIPE_BUF and _writable(fd):
                os.write(fd, data)
            else:
                await asyncio.to_thread(_write_all, fd, data)
        except OSError:
            self._quiet = True

    # -- input and signals -----------------------------------------------------------------------------------

    async def _pass_typing(self) -> None:
        """Keys to the command. Our terminal is in raw mode, so that Ctrl-C is a key too."""
        master = self._child.typing
        if master is None:
            return
        loop = asyncio.get_running_loop()
        stdin = sys.stdin.fileno()
        while True:
            await _readable(loop, stdin, None)
            keys = os.read(stdin, 4_096)
            if not keys:
                return
            with contextlib.suppress(BlockingIOError):
                os.write(master, keys)

    def _take_signals(self, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
        """Receive signals with their origin: what a terminal sent to our whole group is not sent on once more."""
        loop.add_signal_handler(signal.SIGWINCH, self._child.resize)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        stopped = threading.Event()

        def wait() -> None:
            while not stopped.is_set():
                info = signal.sigtimedwait(SIGNALS, 0.2)
                if info is not None and not stopped.is_set():
                    from_terminal = info.si_code == SI_KERNEL
                    loop.call_soon_threadsafe(self._on_signal, info.si_signo, from_terminal)

        thread = threading.Thread(target=wait, name="signals", daemon=True)
        thread.start()

        def stop() -> None:
            stopped.set()
            thread.join()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            loop.remove_signal_handler(signal.SIGWINCH)

        return stop

    def _on_signal(self, number: int, from_terminal: bool) -> None:
        if self._child.own_group or not from_terminal:
            self._child.signal(number)
        if number in (signal.SIGUSR1, signal.SIGUSR2):
            return
        self._signals += 1
        if self._signals >= 3:
            self._child.signal(signal.SIGKILL)
        elif self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._insist(number))

    async def _insist(self, number: int) -> None:
        """It was asked to end: ask louder after the grace time."""
        await asyncio.sleep(self._grace)
        if number != signal.SIGTERM:
            self._child.signal(signal.SIGTERM)
            await asyncio.sleep(self._grace)
        self._child.signal(signal.SIGKILL)


async def _read(fd: int, idle: float | None, splitter: LineSplitter, recorder: Recorder, name: str) -> bytes:
    """The next bytes; empty at the end. A begun line is recorded when nothing follows for a while."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return os.read(fd, READ_BYTES)
        except BlockingIOError:
            pass
        except OSError:
            # A pseudo-terminal whose other end is closed answers EIO.
            return b""
        if not await _readable(loop, fd, idle):
            pieces = splitter.flush()
            if pieces:
                recorder.output(name, pieces)
            idle = None


async def _readable(loop: asyncio.AbstractEventLoop, fd: int, seconds: float | None) -> bool:
    """Wait until there is something to read. False: not within the time."""
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _resolve, ready)
    try:
        async with asyncio.timeout(seconds):
            await ready
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
    return True


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _writable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return any(event & select.POLLOUT for _, event in poll.poll(0))


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


def _nothing() -> None:
    """Nobody delivers yet."""


def _now() -> int:
    return time.time_ns() // 1_000_000


def _printable(text: str) -> str:
    """Arguments and paths are bytes; what is no UTF-8 is shown with replacement characters."""
    return os.fsencode(text).decode("utf-8", "replace")
