"""The examples run as they are printed, against real servers."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tailrace.client.http import HttpClient, HttpFailure, Response
from tests.support.commands import Result, clean_environment, run_command, started
from tests.support.gateways import SECRET, gateway_on, mint
from tests.support.redis_servers import RedisServer
from tests.support.wait import eventually

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


async def run_example(name: str, *arguments: str, cwd: Path, env: dict[str, str]) -> Result:
    return await run_command(str(EXAMPLES / name), *arguments, cwd=cwd, env=env, program=[sys.executable])


async def test_publish_subscribe(tmp_path: Path) -> None:
    async with gateway_on() as (server, _):
        env = clean_environment(tmp_path, TAILRACE_URL=server.url, TAILRACE_TOKEN=mint())
        whole = await run_example("publish_subscribe.py", "--stream", "run:1", cwd=tmp_path, env=env)
        second = whole.lines[2].split()[0]
        rest = await run_example("publish_subscribe.py", "--stream", "run:1", "--since", second, cwd=tmp_path, env=env)

    assert (whole.code, whole.err) == (0, "")
    assert [line.split()[1] for line in whole.lines[1:4]] == ["greeting", "progress", "progress"]
    assert whole.lines[4].startswith("ended")
    assert rest.lines == whole.lines[3:]


async def test_sync_worker(tmp_path: Path) -> None:
    async with gateway_on() as (server, _):
        env = clean_environment(tmp_path, TAILRACE_URL=server.url, TAILRACE_TOKEN=mint())
        result = await run_example("sync_worker.py", "run:1", "spool", cwd=tmp_path, env=env)

    assert (result.code, result.err) == (0, "")
    assert [line.split()[1] for line in result.lines] == [
        "import.started",
        *["import.progress"] * 10,
        "import.finished",
    ]


@asynccontextmanager
async def application(name: str, folder: Path, redis: RedisServer, key_prefix: str) -> AsyncIterator[HttpClient]:
    """An embedding application on plain uvicorn."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = clean_environment(
        folder,
        TAILRACE_REDIS_URL=redis.url,
        TAILRACE_KEY_PREFIX=key_prefix,
        TAILRACE_JWT_SECRET=SECRET,
        PYTHONPATH=str(EXAMPLES.parent),
    )
    arguments = ("-m", "uvicorn", f"examples.{name}:app", "--port", str(port), "--timeout-graceful-shutdown", "1")
    async with started(*arguments, cwd=folder, env=env, program=[sys.executable]):
        http = HttpClient(f"http://127.0.0.1:{port}")

        async def ready() -> bool:
            try:
                response, _ = await http.request("GET", "/live/events/health", headers={})
            except HttpFailure:
                return False
            return response.status in (200, 404)

        await eventually(ready, 20)
        yield http
        await http.aclose()


async def first_bytes(response: Response, needle: bytes) -> bytes:
    """Read a stream until something came."""
    read = b""
    async with asyncio.timeout(10):
        while needle not in read:
            read += await response.next_chunk()
    return read


async def test_embed_fastapi(tmp_path: Path, redis70: RedisServer, key_prefix: str) -> None:
    async with application("embed_fastapi", tmp_path, redis70, key_prefix) as http:
        path = "/live/events/stream?stream=run:ann.1"
        live = await http.stream("GET", path, headers={"x-user": "ann", "accept": "text/event-stream"})
        await first_bytes(live, b"stream.open")
        started_job, _ = await http.request("POST", "/jobs/1", headers={"x-user": "ann"})
        read = await first_bytes(live, b"job.started")
        other, _ = await http.request("GET", "/live/streams/run:ann.1", headers={"x-user": "bob"})
        nobody, _ = await http.request("GET", "/live/streams/run:ann.1", headers={})
        write, _ = await http.request(
            "POST",
            "/live/streams/run:ann.1/events",
            headers={"x-user": "ann", "content-type": "application/json"},
            body=b'{"type":"x"}',
        )
        live.close()

    assert started_job.status == 200
    assert b'"data":{"job":1}' in read
    assert (other.status, nobody.status, write.status) == (403, 401, 403)


async def test_embed_starlette(tmp_path: Path, redis70: RedisServer, key_prefix: str) -> None:
    async with application("embed_starlette", tmp_path, redis70, key_prefix) as http:
        token = {"authorization": f"Bearer {mint()}"}
        _, home = await http.request("GET", "/", headers={})
        stored, _ = await http.request(
            "POST",
            "/live/api/v1/streams/run:1/events",
            headers={**token, "content-type": "application/json"},
            body=b'{"type":"note","data":1}',
        )
        live = await http.stream("GET", "/live/api/v1/events/stream?stream=run:1", headers=token)
        read = await first_bytes(live, b"event: note")
        live.close()

    assert b"/live" in home
    assert stored.status == 201
    assert b'"data":1' in read


def test_every_example_has_a_test() -> None:
    here = Path(__file__).read_text()

    for path in EXAMPLES.glob("*.py"):
        assert f"test_{path.stem}(" in here
