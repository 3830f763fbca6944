"""`tailrace serve` as an operator runs it, and commands that talk to Redis without it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.support.commands import clean_environment, run_command, started
from tests.support.gateways import SECRET, mint
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.wait import eventually


@pytest.fixture
def environment(tmp_path: Path, redis70: RedisServer, key_prefix: str) -> dict[str, str]:
    return clean_environment(
        tmp_path,
        TAILRACE_REDIS_URL=redis70.url,
        TAILRACE_KEY_PREFIX=key_prefix,
        TAILRACE_JWT_SECRET=SECRET,
        TAILRACE_DRAIN_SECONDS="0.5",
        TAILRACE_TOKEN=mint(),
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_it_serves_and_ends_in_order(
    tmp_path: Path, environment: dict[str, str], free_port: int, workers: str
) -> None:
    env = environment | {"TAILRACE_URL": f"http://127.0.0.1:{free_port}"}
    arguments = ("serve", "--port", str(free_port), "--workers", workers)
    async with started(*arguments, cwd=tmp_path, env=environment) as server:

        async def ready() -> bool:
            return (await run_command("doctor", cwd=tmp_path, env=env)).code == 0

        await eventually(ready, 30, every=0.2)
        published = await run_command("publish", "run:1", "1", "2", "--close", cwd=tmp_path, env=env)
        told = await run_command("tail", "run:1", cwd=tmp_path, env=env)
        server.send(signal.SIGTERM)
        ended = await server.end(20)

    assert published.code == told.code == 0
    assert [record["data"] for record in told.records[:-1]] == [1, 2]
    assert ended.code == 0
    assert environment["TAILRACE_TOKEN"] not in ended.err


async def test_a_redis_with_a_wrong_configuration_keeps_it_from_starting(
    tmp_path: Path, environment: dict[str, str], redis70: RedisServer, free_port: int
) -> None:
    env = environment | {"TAILRACE_REDIS_URL": f"{redis70.url}?password=wrong"}

    result = await run_command("serve", "--port", str(free_port), cwd=tmp_path, env=env)

    assert result.code in (77, 78)
    assert "Traceback" not in result.err


async def test_a_redis_that_would_evict_streams_keeps_it_from_starting(
    tmp_path: Path, environment: dict[str, str], start_redis: StartRedis, free_port: int
) -> None:
    redis = await start_redis({"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}, limited=False)

    result = await run_command(
        "serve", "--port", str(free_port), cwd=tmp_path, env=environment | {"TAILRACE_REDIS_URL": redis.url}
    )

    assert result.code == 78
    assert "noeviction" in result.err


async def test_commands_work_straight_on_redis(tmp_path: Path, environment: dict[str, str]) -> None:
    env = environment | {"TAILRACE_URL": environment["TAILRACE_REDIS_URL"]}

    ran = await run_command("exec", "--id", "1", "--", "seq", "3", cwd=tmp_path, env=env)
    told = await run_command("tail", "run:1", cwd=tmp_path, env=env)
    info = await run_command("info", "run:1", cwd=tmp_path, env=env)

    assert ran.code == told.code == info.code == 0
    assert [each["data"]["text"] for each in told.records if each.get("type") == "run.output"] == ["1", "2", "3"]
    assert json.loads(info.out)["state"] == "closed"
