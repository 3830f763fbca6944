"""Bodies that are slow, endless or half, on a real connection."""

from __future__ import annotations

from tailrace.app import create_app
from tailrace.eventlog.memory import MemoryLog
from tests.support.gateway import settings_of
from tests.support.serving import serving
from tests.support.tokens import token

HEAD = (
    "POST /api/v1/streams/run:42/events HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    f"Authorization: Bearer {token('root', admin=True)}\r\n"
)


async def test_slow_body_is_a_408_and_the_end_of_the_connection() -> None:
    app = create_app(settings_of(body_timeout_seconds=0.2), log=MemoryLog())
    async with serving(app) as served, served.client() as client:
        await client.send(f"{HEAD}Content-Length: 100\r\n\r\n{{".encode())
        answer = await client.rest()

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"REQUEST_TIMEOUT"' in answer


async def test_endless_body_is_a_413_and_the_end_of_the_connection() -> None:
    app = create_app(settings_of(max_batch_bytes=100_000), log=MemoryLog())
    async with serving(app) as served, served.client() as client:
        await client.send(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
        await client.send(b"4000\r\n" + b" " * 0x4000 + b"\r\n")
        for _ in range(6):
            await client.send(b"4000\r\n" + b" " * 0x4000 + b"\r\n")
        answer = await client.rest()

    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_announced_length_over_the_limit_is_refused_before_the_body() -> None:
    app = create_app(settings_of(), log=MemoryLog())
    async with serving(app) as served, served.client() as client:
        await client.send(f"{HEAD}Content-Length: 999999999\r\n\r\n".encode())
        answer = await client.rest()

    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_client_that_leaves_in_the_middle_stores_nothing_and_harms_nobody() -> None:
    log = MemoryLog()
    app = create_app(settings_of(), log=log)
    async with serving(app) as served:
        async with served.client() as client:
            await client.send(f'{HEAD}Content-Length: 100\r\n\r\n{{"type":"a"'.encode())
        async with served.client() as other:
            await other.send(f'{HEAD}Content-Length: 12\r\n\r\n{{"type":"b"}}'.encode())
            assert b" 201 " in await other.until(b"\r\n\r\n")
            await other.until(b"}]}")
            await other.send(f"{HEAD.replace('POST', 'GET')}\r\n".encode())
            page = await other.until(b'"state":"open"}')

    assert page.count(b'"prev"') == 1
    assert b'"type":"b"' in page


async def test_largest_batch_passes() -> None:
    app = create_app(settings_of(), log=MemoryLog())
    line = b'{"type":"a","data":"' + b"x" * 1_000_000 + b'"}\n'
    body = line * 8
    async with serving(app) as served, served.client() as client:
        head = HEAD.replace("application/json", "application/x-ndjson")
        await client.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await client.until(b"\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 201 ")
