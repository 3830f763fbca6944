"""Which server a command talks to, and as whom: flags, then environment, then the `.tailrace` folder around here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tailrace.errors import ConfigError

if TYPE_CHECKING:
    from tailrace.client.client import Tailrace

__all__ = ["FOLDER", "HOME", "SPOOL_FOLDER", "Target", "data_folder", "find_target", "own_folder"]

FOLDER = ".tailrace"
URL_FILE = "url"
SPOOL_FOLDER = "spool"
HOME = "home"
"""In a spool's header: the server of the folder that the spool is in."""
TOKEN_FILE = "token"  # noqa: S105 - a file's name


class Target(msgspec.Struct, frozen=True):
    """A server and a token for it."""

    url: str
    token: str | None
    folder: Path | None
    """The data folder that was found; None: there is none."""
    home: bool = False
    """Whether the server is the folder's own."""

    def spool_target(self, spool_folder: Path) -> str:
        """Whom events that are kept in a folder are for. A data folder's own server may move to another port."""
        from tailrace.client.client import target_of

        if self.home and self.folder is not None and spool_folder == self.folder / SPOOL_FOLDER:
            return HOME
        return target_of(self.url)

    def client(self, *, timeout_seconds: float = 3.0) -> Tailrace:
        """A client for it. Somebody waits in front of a terminal: not for long."""
        from tailrace.client.client import Tailrace

        # An empty text keeps the client from looking into the environment: that was done here, with care.
        return Tailrace(self.url, token=self.token or "", timeout_seconds=timeout_seconds)


def find_target(url: str | None, token: str | None) -> Target:
    """Find the server: `--url` and `--token` win over TAILRACE_URL and TAILRACE_TOKEN, these over a data folder.

    A folder's token is only ever sent to the folder's own server.

    Raises:
        ConfigError: nothing names a server.
    """
    folder = data_folder()
    here = _read(folder, URL_FILE)
    url = url or os.environ.get("TAILRACE_URL") or here
    token = token or os.environ.get("TAILRACE_TOKEN")
    if not url:
        raise ConfigError("no server: start one here with `tailrace dev`, give --url, or set TAILRACE_URL")
    home = here is not None and url.rstrip("/") == here.rstrip("/")
    if token is None and home:
        token = _read(folder, TOKEN_FILE)
    return Target(url, token, folder, home)


def data_folder() -> Path | None:
    """TAILRACE_DATA_DIR, or the nearest `.tailrace` in this folder or above it that is ours."""
    named = os.environ.get("TAILRACE_DATA_DIR")
    if named:
        return Path(named) if Path(named).is_dir() else None
    here = Path.cwd()
    for parent in (here, *here.parents):
        folder = parent / FOLDER
        if own_folder(folder):
            return folder
    return None


def own_folder(folder: Path) -> bool:
    """Whether a data folder is there and belongs to this user or to root.

    Somebody else's (planted in /tmp, say) could lead our output to a server of theirs.
    """
    try:
        status = folder.stat()
    except OSError:
        return False
    return folder.is_dir() and status.st_uid in (os.getuid(), 0)


def _read(folder: Path | None, name: str) -> str | None:
    if folder is None:
        return None
    try:
        return (folder / name).read_text().strip() or None
    except OSError:
        return None
