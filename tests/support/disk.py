"""A disk for a Redis server whose power can fail, and which can be slow or full; see disk.c."""

from __future__ import annotations

import os
import resource
import subprocess
from functools import cache
from pathlib import Path

from tests.support.need import need_binary
from tests.support.redis_servers import RedisServer
from tests.support.wait import eventually

__all__ = ["Disk"]

SOURCE = Path(__file__).with_suffix(".c")


@cache
def _library() -> Path:
    """The compiled disk.c, in the session's own folder."""
    made = Path(os.environ["XDG_RUNTIME_DIR"]) / f"disk-{os.getpid()}.so"
    compiler = need_binary("cc", "gcc")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(made), str(SOURCE)], check=True, timeout=60)
    return made


class Disk:
    """What is under a server. Make it before the server is started."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.folder = server.folder / "disk"
        self.folder.mkdir()
        server.environment = {"LD_PRELOAD": str(_library()), "TR_DISK": str(self.folder)}

    def hold(self) -> None:
        """No fsync ends from now on."""
        (self.folder / "hold").touch()

    def release(self) -> None:
        """Fsyncs end again."""
        (self.folder / "hold").unlink(missing_ok=True)

    def fill(self) -> None:
        """No file gets larger from now on; it is told as EFBIG instead of ENOSPC."""
        # A server of the tests inherits from the Python that started it that the signal for this is ignored.
        size = max(path.stat().st_size for path in self._files())
        resource.prlimit(self.server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def clear(self) -> None:
        """There is room again."""
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(self.server.pid, resource.RLIMIT_FSIZE, unlimited)

    def written(self) -> None:
        """The system has put everything onto the disk by itself."""
        for path in self._files():
            (self.folder / path.name).write_text(f"{path.stat().st_size:020}")

    async def wait_synced(self) -> None:
        """Wait until an fsync has covered everything that was written."""
        await eventually(lambda: all(self._synced(path) == path.stat().st_size for path in self._files()), 60)

    async def lose_power(self) -> None:
        """The server is gone, and with it all that was not on the disk."""
        await self.server.kill()
        for path in self._files():
            os.truncate(path, self._synced(path))

    def _files(self) -> list[Path]:
        return list((self.server.folder / "appendonlydir").glob("*.incr.aof"))

    def _synced(self, path: Path) -> int:
        note = self.folder / path.name
        return int(note.read_text() or 0) if note.exists() else 0
