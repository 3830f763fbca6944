"""A machine for runbooks: one Redis with a data folder, gateways, and a `systemctl` that starts and ends them.

The stand-in for systemctl is the only thing that is not what an operator has: it asks the test to do it.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.chaos.load import PREFIX
from tests.chaos.stage import PATIENCE, Stage, serve, stage
from tests.e2e.harness import Gateway
from tests.support.need import need_binary
from tests.support.redis_servers import RedisServer, find_port

__all__ = ["BOOKS", "PRELUDE", "Machine", "machine"]

PAGE = Path(__file__).parents[2] / "docs" / "runbooks.md"
_SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_TEXT = PAGE.read_text()
PRELUDE = "".join(_BLOCK.findall(_TEXT.partition("\n## ")[0]))
"""What the page says to put in front of every block."""
BOOKS = {title: _BLOCK.findall(body) for title, body in _SECTION.findall(_TEXT)}
"""The blocks of each runbook, by its title."""

SYSTEMCTL = """#!/bin/sh
# Asks the test that waits for requests in this folder.
asked="$(dirname "$0")/request.$$"
echo "$*" >"$asked.new"
mv "$asked.new" "$asked"
while [ -e "$asked" ]; do sleep 0.02; done
exit "$(cat "$asked.code")"
"""
Action = Callable[[], Awaitable[object]]


class Machine:
    """See above.

    Attributes:
        run: readers, the publisher and the judge.
        url: the gateway that they use.
        actions: what `systemctl` can do, by its arguments.
    """

    def __init__(self, redis: RedisServer, folder: Path, run: Stage, stack: AsyncExitStack) -> None:
        self.redis = redis
        self.folder = folder
        self.run = run
        self.stack = stack
        self.url = ""
        self.data = Path(str(redis.config["dir"]))
        self.actions: dict[str, Action] = {
            "start redis-server": self._start,
            "stop redis-server": redis.stop,
            "kill -s KILL redis-server": redis.kill,
        }
        self.environment: dict[str, str] = {}

    async def _start(self) -> None:
        if not self.redis.running:
            await self.redis.start()

    async def add_gateway(self, name: str = "tailrace", **settings: str) -> Gateway:
        """A `tailrace serve` that systemctl can restart. With a `config` its Redis is what that file says."""
        folder = self.folder / name.replace("@", "-")
        folder.mkdir()
        served = Gateway(self.redis, PREFIX, folder, **({"redis_url": self.redis.tcp_url} | settings))
        if "config" in settings:
            del served._env["TAILRACE_REDIS_URL"]

        async def restart() -> None:
            await served.stop(PATIENCE)
            await served.start(ready=False)

        self.actions[f"restart {name}"] = restart
        self.stack.push_async_callback(served.kill)
        await served.start(ready=False)
        await served.wait_ready(PATIENCE)
        self.url = self.url or served.url
        return served

    async def serve_here(self) -> None:
        """A gateway in this process, for runbooks that leave it alone."""
        self.url = await self.stack.enter_async_context(serve(self.redis.tcp_url))

    async def attend(self) -> None:
        """Five events, readers who stay, and readers who leave and come back at the end."""
        self.run.attend("stay", self.url)
        self.run.attend("away", self.url)
        for _ in range(5):
            await self.run.works(self.url)
        await self.run.caught_up(self.redis)
        await self.run.leave("away")

    async def type(self, title: str) -> None:
        """Type what a runbook says."""
        for block in BOOKS[title]:
            await self._bash(PRELUDE + block)

    async def perform(self, title: str) -> None:
        """Type what a runbook says; then everything has to work, and those come back who had left."""
        await self.type(title)
        self.run.attend("away", self.url)
        await self.run.works(self.url)
        await self.run.publish(self.url, 2)

    async def _bash(self, script: str) -> None:
        bin_folder = self.folder / "bin"
        environment = {
            **os.environ,
            "PATH": f"{bin_folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "REDIS_PORT": str(self.redis.port),
            "REDIS_URL": self.redis.tcp_url,
            "REDIS_DATA": str(self.data),
            "TAILRACE_URL": self.url,
            "TAILRACE_TOKEN": self.run.bearer,
            "COPY": str(self.folder / "copy"),
            **self.environment,
        }
        environment.pop("TAILRACE_REDIS_URL", None)
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-c", script),
            env=environment,
            cwd=self.folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        obeying = asyncio.create_task(self._obey(bin_folder))
        try:
            async with asyncio.timeout(120):
                output, _ = await process.communicate()
        finally:
            obeying.cancel()
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        assert process.returncode == 0, f"{script}\n{output.decode()}"

    async def _obey(self, folder: Path) -> None:
        """Do what systemctl asks for."""
        while True:
            for asked in await asyncio.to_thread(lambda: list(folder.glob("request.*[0-9]"))):
                action = self.actions.get(asked.read_text().strip())
                if action is not None:
                    await action()
                asked.with_suffix(f"{asked.suffix}.code").write_text("0" if action is not None else "5")
                asked.unlink()
            await asyncio.sleep(0.02)  # the stand-in's own beat; nothing is asserted by it


@asynccontextmanager
async def machine(binary: str, config: dict[str, str] | None = None) -> AsyncIterator[Machine]:
    """A machine whose Redis runs; ended afterwards."""
    need_binary("redis-cli", "redis-tools")
    need_binary("curl", "curl")
    redis = RedisServer(binary, port=find_port())
    data = redis.folder / "data"
    await asyncio.to_thread(data.mkdir)
    redis.configure({"dir": str(data), **(config or {})})
    folder = redis.folder / "machine"
    (folder / "bin").mkdir(parents=True)
    script = folder / "bin" / "systemctl"
    script.write_text(SYSTEMCTL)
    script.chmod(0o755)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, redis.remove_sync)
        stack.push_async_callback(asyncio.to_thread, shutil.rmtree, folder, ignore_errors=True)
        await redis.start()
        run = await stack.enter_async_context(stage())
        yield Machine(redis, folder, run, stack)
