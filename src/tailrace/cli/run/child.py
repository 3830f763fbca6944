"""The command itself: how it is started, what it is connected to, and how signals reach it.

Rules of this file
1. An output that is a terminal for us is a terminal for the command (a pseudo-terminal of its own), so that colour is
   kept; any other is a pipe. Standard output and error stay apart in both cases.
2. With a terminal it lives in a session of its own, and what is typed is passed on to it, Ctrl-C included. With pipes
   it shares our process group while we have a terminal (a Ctrl-C there reaches it by itself), else it has its own.
3. Signals that others send to us are passed on. Whoever wants us to end gets the command ended: its own chance first,
   SIGTERM after the grace time, SIGKILL after another.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import tty
from collections.abc import Sequence

from tailrace.cli.exits import ExitCode

__all__ = ["Child", "CannotStart"]

DEFAULT_SIZE = struct.pack("HHHH", 24, 80, 0, 0)


class CannotStart(Exception):
    """The command did not become a process."""

    def __init__(self, detail: str, code: ExitCode) -> None:
        super().__init__(detail)
        self.code = code


class Child:
    """A running command."""

    def __init__(self, process: subprocess.Popen[bytes], outputs: dict[int, str], *, terminal: bool) -> None:
        self.process = process
        self.outputs = outputs
        """File descriptors to read, and what each of them is: stdout or stderr."""
        self.terminal = terminal
        """Whether stdout is a pseudo-terminal."""
        self.typing: int | None = None
        """Where what is typed goes; None: the command reads our stdin itself."""
        self.own_group = False
        self._saved: list[object] | None = None

    @classmethod
    def start(cls, argv: Sequence[str], *, env: dict[str, str]) -> Child:
        """Start a command.

        Raises:
            CannotStart: with the exit code that a shell would have.
        """
        stdout_terminal, stderr_terminal = sys.stdout.isatty(), sys.stderr.isatty()
        stdout, stdout_child = pty.openpty() if stdout_terminal else os.pipe()
        stderr, stderr_child = pty.openpty() if stderr_terminal and stdout_terminal else os.pipe()
        typing = stdout_terminal and _typed_into()
        for master in (stdout, stderr):
            os.set_blocking(master, False)
        try:
            process = subprocess.Popen(  # noqa: S603 - running the given command is what this is for
                list(argv),
                stdin=stdout_child if typing else None,
                stdout=stdout_child,
                stderr=stderr_child,
                env=env,
                start_new_session=stdout_terminal,
                process_group=None if stdout_terminal or sys.stdin.isatty() else 0,
                preexec_fn=_take_terminal if stdout_terminal else None,
            )
        except OSError as exc:
            os.close(stdout)
            os.close(stderr)
            missing = exc.errno in (errno.ENOENT, errno.ENOTDIR)
            code = ExitCode.EXEC_NOT_FOUND if missing else ExitCode.EXEC_NOT_EXECUTABLE
            raise CannotStart(f"{argv[0]}: {os.strerror(exc.errno or 0)}", code) from None
        finally:
            os.close(stdout_child)
            os.close(stderr_child)
        child = cls(process, {stdout: "stdout", stderr: "stderr"}, terminal=stdout_terminal)
        child.own_group = stdout_terminal or not sys.stdin.isatty()
        child.typing = stdout if typing else None
        child.resize()
        return child

    def resize(self) -> None:
        """Give the pseudo-terminals our terminal's size."""
        if not self.terminal:
            return
        try:
            size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, DEFAULT_SIZE)
        except OSError:
            size = DEFAULT_SIZE
        if size[:4] == b"\0\0\0\0":
            size = DEFAULT_SIZE
        for output in self.outputs:
            with contextlib.suppress(OSError):
                fcntl.ioctl(output, termios.TIOCSWINSZ, size)

    def begin_typing(self) -> None:
        """Pass every key on as it is: the pseudo-terminal echoes, and makes signals of Ctrl-C and Ctrl-Z."""
        if self.typing is not None:
            self._saved = termios.tcgetattr(sys.stdin.fileno())
            tty.setraw(sys.stdin.fileno(), termios.TCSADRAIN)
            # Our own words still need their line feeds made into new lines.
            mode = termios.tcgetattr(sys.stdin.fileno())
            mode[1] |= termios.OPOST
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, mode)

    def end_typing(self) -> None:
        """Give the terminal back as it was."""
        if self._saved is not None:
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._saved)  # type: ignore[arg-type]
            self._saved = None

    def signal(self, number: int) -> None:
        """Send a signal to the command, and to what it started in its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.own_group:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)

    @property
    def exit_code(self) -> int:
        """As a shell has it: the command's code, or 128 and the signal that ended it."""
        code = self.process.returncode
        return code if code >= 0 else 128 - code

    @property
    def signal_name(self) -> str | None:
        """The signal that ended it."""
        code = self.process.returncode
        if code >= 0:
            return None
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"


def _typed_into() -> bool:
    """Whether somebody types here: stdin is our terminal and we are in the foreground."""
    try:
        return sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:
        return False


def _take_terminal() -> None:
    """In the child: make the pseudo-terminal the controlling one of the new session."""
    fcntl.ioctl(1, termios.TIOCSCTTY, 0)
