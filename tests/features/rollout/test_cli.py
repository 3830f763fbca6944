"""`tailrace rollout` as an operator uses it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from tailrace.cli.exits import ExitCode
from tailrace.eventlog.redis.rollout import RedisRollout
from tailrace.features.rollout.changing import set_percent
from tests.support.commands import Result, clean_environment, run_command
from tests.support.redis_servers import RedisServer
from tests.support.wait import eventually

Run: TypeAlias = Callable[..., Awaitable[Result]]


@pytest.fixture
def run(tmp_path: Path, redis70: RedisServer, key_prefix: str) -> Run:
    environment = clean_environment(tmp_path, TAILRACE_REDIS_URL=redis70.url, TAILRACE_KEY_PREFIX=key_prefix)

    async def run(*arguments: str) -> Result:
        return await run_command("rollout", *arguments, cwd=tmp_path, env=environment, seconds=60)

    return run


async def test_an_operator_moves_looks_and_goes_back(run: Run) -> None:
    done = await run("set", "10", "--hold", "7d", "--by", "ann", "--reason", "week 1")
    assert (done.code, done.records[0]["percent"]) == (0, 10)

    back = await run("rollback", "--by", "bob")
    again = await run("rollback", "--by", "bob")

    assert (back.records[0]["was_percent"], back.records[0]["percent"]) == (10, 0)
    assert again.records == [{"changed": False}]
    (status,) = (await run("status", "--json")).records
    assert status["kinds"]["workflow"]["by"] == "bob"
    assert [(change["by"], change["action"], change["hold_seconds"]) for change in status["changes"]] == [
        ("ann", "set", 604_800),
        ("bob", "rollback", None),
    ]


async def test_finalize_is_refused_before_all_have_moved_and_done_after(
    run: Run, redis70: RedisServer, key_prefix: str
) -> None:
    refused = await run("finalize")
    assert (refused.code, "0 %" in refused.err) == (ExitCode.CONFLICT, True)
    store = RedisRollout(redis70.url, prefix=key_prefix)
    await set_percent(store, "workflow", 100, by="ann", settle_seconds=0.01)

    async def settled() -> bool:
        look = await store.look()
        return look.rollouts["workflow"].is_settled(look.now)

    await eventually(settled)
    await store.aclose()

    done = await run("finalize")

    assert (done.code, done.records[0]["finalized"]) == (0, True)
    assert "@" in done.records[0]["by"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["set", "101"], ExitCode.USAGE),
        (["set", "10", "--hold", "soon"], ExitCode.USAGE),
        (["set", "10", "--kind", "No Kind"], ExitCode.INVALID),
        (["status", "--redis", "redis://127.0.0.1:1/0"], ExitCode.UNAVAILABLE),
    ],
)
async def test_what_cannot_work_is_refused_with_its_code(run: Run, arguments: list[str], code: ExitCode) -> None:
    assert (await run(*arguments)).code == code
