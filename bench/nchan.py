"""Nchan (nginx, C) beside the gateway: the same audience, the same payload, the same pace. Optional."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.harness import Sample
from bench.process import Cores, child, cpu_seconds, free_port, private_folder
from bench.stack import Audience, audience

__all__ = ["Nchan", "module", "open_nchan"]

MODULE_VARIABLE = "BENCH_NCHAN_MODULE"
"""Names the module where it is not in one of nginx's own folders."""
MODULES = ("/usr/lib/nginx/modules/ngx_nchan_module.so", "/usr/share/nginx/modules/ngx_nchan_module.so")
CONFIG = """
load_module {module};
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 1000000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen unix:{folder}/publish.sock;
    listen 127.0.0.1:{port} sndbuf=131072 backlog=4096;
    location = /publish {{ nchan_publisher; nchan_channel_id bench; nchan_message_buffer_length 20000; }}
    location = /listen {{
      nchan_subscriber eventsource websocket; nchan_channel_id bench; nchan_subscriber_first_message newest;
    }}
  }}
}}
"""
# As long as an envelope of the gateway around the same data.
PAYLOAD = (
    b'{"id":"1700000000000-1","prev":"1700000000000-1","stream":"run:fanout","type":"bench.tick",'
    + b'"x":"%b"}' % (b"x" * 230)
)
POST = b"POST /publish HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n%b" % (len(PAYLOAD), PAYLOAD)
PIPELINED = 100


def module() -> Path | None:
    """Nchan's module, if nginx and it are installed."""
    if shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None:
        return None
    paths = [given] if (given := os.environ.get(MODULE_VARIABLE)) else MODULES
    return next((Path(path) for path in paths if Path(path).exists()), None)


class Nchan:
    """A running nginx with its audience."""

    def __init__(
        self, pid: int, pair: tuple[asyncio.StreamReader, asyncio.StreamWriter], clients: int, listeners: Audience
    ) -> None:
        self._pid = pid
        self._reader, self._writer = pair
        self._clients = clients
        self._listeners = listeners

    async def paced(self, records: int, rate: int) -> Sample:
        """One record at a time, at a pace."""
        return await self._measured(records, _pace(self._reader, self._writer, records, rate), records / rate)

    async def burst(self, records: int) -> Sample:
        """As many as it takes."""
        return await self._measured(records, _flood(self._reader, self._writer, records), 60)

    async def _measured(self, records: int, publishing: Coroutine[Any, Any, None], seconds: float) -> Sample:
        self._listeners.expect(records, seconds + 60)
        before = cpu_seconds(self._pid)
        await publishing
        heard = await self._listeners.heard(seconds + 90)
        if heard.events != records * self._clients:
            raise RuntimeError(f"Nchan lost events: {heard.events} of {records * self._clients}")
        us = (cpu_seconds(self._pid) - before) / heard.events * 1e6
        return {"us": us, "us_a_write": us}


@asynccontextmanager
async def open_nchan(clients: int, on: Cores, others: Cores, *, websocket: bool = False) -> AsyncIterator[Nchan]:
    """Start nginx and connect its audience."""
    binary = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    port = await free_port()
    async with private_folder() as folder:
        (folder / "nginx.conf").write_text(CONFIG.format(module=module(), folder=folder, port=port))
        async with child([str(binary), "-p", folder, "-c", folder / "nginx.conf"], on=on) as nginx:
            pair = await _connected(folder / "publish.sock")
            listening = audience(port, clients, path="/listen", chain=False, websocket=websocket, on=others)
            async with listening as listeners:
                yield Nchan(nginx.pid, pair, clients, listeners)
            pair[1].close()


async def _pace(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, records: int, rate: int) -> None:
    loop = asyncio.get_running_loop()
    due = loop.time()
    for _ in range(records):
        writer.write(POST)
        await _answered(reader)
        due += 1 / rate
        await asyncio.sleep(max(0, due - loop.time()))


async def _flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, records: int) -> None:
    for first in range(0, records, PIPELINED):
        count = min(PIPELINED, records - first)
        writer.write(POST * count)
        for _ in range(count):
            await _answered(reader)


async def _answered(reader: asyncio.StreamReader) -> None:
    answer = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(int(length.partition(b":")[2]))


async def _connected(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(10):
        while True:
            try:
                return await asyncio.open_unix_connection(str(path))
            except OSError:
                await asyncio.sleep(0.02)
