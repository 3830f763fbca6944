"""The examples of runs, as a user runs them: real processes against a real gateway."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, Error

from tailrace.features.runs.events import EventStore, StreamEvent
from tests.browser.conftest import browser  # noqa: F401 - a fixture
from tests.features.runs.api import SERVICE, Site, site
from tests.support.commands import clean_environment, run_command, started
from tests.support.redis_servers import find_port
from tests.support.wait import deadline, eventually

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PAGE = (
    "# Rivers\n\n"
    + "The water of the river carries sand and stones to the sea. The river is never the same river. " * 8
)


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path / "gateway", run_lease_seconds=5) as made:
        yield made


@pytest.fixture
def env(there: Site, tmp_path: Path) -> dict[str, str]:
    pages = tmp_path / "pages"
    pages.mkdir()
    for name in ("a", "b", "c"):
        (pages / f"{name}.md").write_text(PAGE)
    return clean_environment(tmp_path, TAILRACE_URL=there.served.url, TAILRACE_TOKEN=SERVICE)


async def events(there: Site, run_id: str) -> list[StreamEvent]:
    async with EventStore(there.served.url, token=SERVICE) as store:
        return await store.get_events(run_id, limit=10_000)


async def test_the_workflow_is_a_run_with_a_report_and_can_be_watched_in_a_terminal(
    there: Site, env: dict[str, str], tmp_path: Path
) -> None:
    script = str(EXAMPLES / "workflow" / "summarise.py")
    arguments = [script, "pages", "--id", "1", "--report", "report.md", "--pause", "0"]

    done = await run_command(*arguments, cwd=tmp_path, env=env, program=[sys.executable], seconds=60)
    watched = await run_command("tail", "run:1", "--from-start", cwd=tmp_path, env=env, seconds=60)

    run = await there.good("GET", "/runs/1")
    assert (done.code, done.err) == (0, "")
    assert (run["status"], run["result"]) == ("completed", {"files": 3, "report": "report.md"})
    report = (tmp_path / "report.md").read_text()
    assert [line for line in report.splitlines() if line.startswith("## ")] == ["## a.md", "## b.md", "## c.md"]
    assert "run.completed" in watched.out
    texts = [event.data["text"] for event in await events(there, "1") if event.type == "token.delta"]
    assert "".join(texts).count("river") > 3


async def test_a_workflow_that_is_killed_is_lost_and_resumed_where_it_was(
    there: Site, env: dict[str, str], tmp_path: Path
) -> None:
    script = str(EXAMPLES / "workflow" / "summarise.py")
    arguments = [script, "pages", "--id", "1", "--pause", "0.05"]

    async def one_done() -> bool:
        return any(event.type == "file.done" for event in await events(there, "1"))

    async with started(*arguments, cwd=tmp_path, env=env, program=[sys.executable]) as working:
        await eventually(one_done, 60, every=0.1)
        working.process.kill()
        await working.process.wait()

    async def lost() -> bool:
        return bool((await there.good("GET", "/runs/1"))["status"] == "lost")

    await eventually(lost, 60, every=0.2)
    finished = [event.data["file"] for event in await events(there, "1") if event.type == "file.done"]
    arguments = [script, "pages", "--id", "2", "--resume", "1", "--pause", "0"]
    done = await run_command(*arguments, cwd=tmp_path, env=env, program=[sys.executable], seconds=60)

    assert done.code == 0, done.err
    resumed = await events(there, "2")
    assert [event.data["file"] for event in resumed if event.type == "file.skipped"] == finished
    assert [event.data["file"] for event in resumed if event.type == "file.done"] == [
        name for name in ("a.md", "b.md", "c.md") if name not in finished
    ]
    assert (await there.good("GET", "/runs/2"))["result"]["files"] == 3


async def test_flask_starts_runs_whose_viewers_read_here_and_at_the_gateway(
    there: Site, env: dict[str, str], tmp_path: Path
) -> None:
    port = find_port()
    arguments = ["-m", "flask", "--app", str(EXAMPLES / "flask" / "app.py"), "run", "--port", str(port)]
    async with (
        started(*arguments, cwd=tmp_path, env=env, program=[sys.executable]),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as flask,
    ):

        async def ready() -> bool:
            try:
                return (await flask.get("/")).is_success
            except httpx.TransportError:
                return False

        await eventually(ready, 60, every=0.1)
        run_id = (await flask.post("/jobs")).json()["run"]
        async with deadline(60):
            here = (await flask.get(f"/jobs/{run_id}/events")).text
            beside = await there.lines(
                f"/streams/run:{run_id}/events/stream?format=raw", auth=SERVICE, until="run.completed"
            )
            ids = re.findall(r"^id: (\S+)$", here, flags=re.MULTILINE)
            again = (await flask.get(f"/jobs/{run_id}/events", headers={"Last-Event-ID": ids[-4]})).text

    assert re.findall(r'"n":(\d+)', here) == [str(n) for n in range(1, 11)]
    assert [match for line in beside for match in re.findall(r'"n":(\d+)', line)] == [str(n) for n in range(1, 11)]
    assert "event: run.completed" in here
    assert "stream.closed" in here
    assert re.findall(r"^id: (\S+)$", again, flags=re.MULTILINE) == ids[-4:]
    assert (await there.good("GET", f"/runs/{run_id}"))["status"] == "completed"


@pytest.mark.asyncio(loop_scope="module")
async def test_flask_page_shows_the_same_run_twice_in_a_browser(
    env: dict[str, str],
    tmp_path: Path,
    browser: Browser,  # noqa: F811 - the fixture
) -> None:
    port = find_port()
    origin = f"http://127.0.0.1:{port}"
    async with site(tmp_path / "beside", cors_origins=(origin,)) as beside:
        env = env | {"TAILRACE_URL": beside.served.url}
        arguments = ["-m", "flask", "--app", str(EXAMPLES / "flask" / "app.py"), "run", "--port", str(port)]
        async with started(*arguments, cwd=tmp_path, env=env, program=[sys.executable]):
            page = await browser.new_page()

            async def opened() -> bool:
                try:
                    return (await page.goto(origin)) is not None
                except Error:
                    return False

            await eventually(opened, 60, every=0.1)
            await page.click("#start")
            for viewer in ("flask", "gateway"):
                await page.wait_for_function(
                    "id => document.getElementById(id).textContent.endsWith('done')", arg=viewer, timeout=60_000
                )
            shown = [await page.inner_text(f"#{viewer}") for viewer in ("flask", "gateway")]
            await page.close()

    assert shown == ["1 2 3 4 5 6 7 8 9 10 done"] * 2
