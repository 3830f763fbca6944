"""Every command and every program in the pages works as it stands there."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tailrace.config import Settings, settings_table, unknown_variables
from tests.e2e.harness import Gateway, gateway, token
from tests.support.redis_servers import RedisServer, StartRedis

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#]+)")


def blocks(language: str) -> list[object]:
    """The pages' blocks in a language, each with a name to find it by."""
    found: list[object] = []
    for page in PAGES:
        for number, match in enumerate(_BLOCK.finditer(page.read_text()), 1):
            if match[1] == language and "make run" not in match[2]:
                found.append(pytest.param(match[2], id=f"{page.name}-{number}"))
    return found


@pytest_asyncio.fixture
async def site(
    request: pytest.FixtureRequest, redis70: RedisServer, start_redis: StartRedis, key_prefix: str, tmp_path: Path
) -> AsyncIterator[dict[str, str]]:
    """A gateway of its own for each block, and the environment that a reader has."""
    served: Gateway
    # Old channels are outside of our prefix, so the minimal rights do not reach them.
    block = request.node.callspec.params["block"]
    old_channels = "WorkflowPublisher" in block or "tailrace rollout" in block
    server = await start_redis(limited=False) if old_channels else redis70
    (tmp_path / ".tailrace").mkdir()
    (tmp_path / ".tailrace" / "token").write_text(token(read=["run:*"], write=["run:*"]))
    async with gateway(server, key_prefix, tmp_path) as served:
        yield {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TAILRACE_URL": served.url,
            "TAILRACE_TOKEN": token(read=["run:*"], write=["run:*"]),
            "TAILRACE_JWT_SECRET": "an-hmac-key-for-these-tests-of-enough-bytes",
            "TAILRACE_REDIS_URL": server.url,
            "TAILRACE_KEY_PREFIX": key_prefix,
        }


async def run(argv: list[str], env: dict[str, str], folder: Path) -> None:
    done = await asyncio.to_thread(
        subprocess.run, argv, env=env, cwd=folder, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", blocks("sh"))
async def test_commands_work_as_they_stand(block: str, site: dict[str, str], tmp_path: Path) -> None:
    script = block.replace(".venv/bin/tailrace", "tailrace").replace("http://127.0.0.1:8080", site["TAILRACE_URL"])
    script = re.sub(
        r"^(curl -N .*|tailrace tail run:demo --from-start.*)$", r"set +e; timeout 2 \1\nset -e", script, flags=re.M
    )
    await run(["bash", "-euo", "pipefail", "-c", script], site, tmp_path)


@pytest.mark.parametrize("block", blocks("python"))
async def test_programs_work_as_they_stand(block: str, site: dict[str, str], tmp_path: Path) -> None:
    program = block
    if "run:42" in program:
        program = program.replace("            print(item)", "            print(item)\n            break")
    await run([sys.executable, "-W", "error", "-c", program], site, tmp_path)


@pytest.mark.parametrize("block", blocks("toml"))
def test_settings_in_the_pages_are_settings(block: str) -> None:
    Settings(**tomllib.loads(block))


def test_every_link_in_the_pages_leads_somewhere() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md"]
        for target in _LINK.findall(page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


def test_every_name_in_the_example_of_an_environment_is_a_setting() -> None:
    lines = [line for line in (ROOT / ".env.example").read_text().splitlines() if line and not line.startswith("#")]
    given = dict(line.split("=", 1) for line in lines)
    table = settings_table()

    assert [name for name in given if f"`{name}`" not in table] == []
    assert unknown_variables(given) == []


def test_the_page_of_settings_is_what_the_settings_say() -> None:
    table = settings_table()
    assert table in (ROOT / "docs" / "settings.md").read_text(), "write docs/settings.md again: make settings"
