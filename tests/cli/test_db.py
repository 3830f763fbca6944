"""`tailrace db` and `tailrace runs`, as commands."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.features.runs.api import ADMIN, site
from tests.support.commands import clean_environment, on_terminal


@pytest.mark.slow
async def test_the_tables_go_up_and_down(run: Run, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/x.db"

    assert (await run("db", "current", "--database", database)).out.strip() == "none"
    assert (await run("db", "check", "--database", database)).code == 1
    assert (await run("db", "upgrade", "--database", database)).code == 0
    assert (await run("db", "check", "--database", database)).code == 0
    version = (await run("db", "current", "--database", database)).out.strip()
    assert version.isdigit()
    assert (await run("db", "downgrade", "base", "--yes", "--database", database)).code == 0
    assert (await run("db", "current", "--database", database)).out.strip() == "none"


async def test_a_database_that_is_away_or_unknown_has_its_exit_code(run: Run, tmp_path: Path) -> None:
    away = await run("db", "upgrade", "--database", f"postgresql://me@/x?host={tmp_path}")
    unknown = await run("db", "upgrade", "--database", "oracle://h/d")

    assert (away.code, unknown.code) == (69, 78)


@pytest.mark.slow
async def test_runs_are_listed_shown_cancelled_and_imported(run: Run, tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("CREATE TABLE run_events (id INTEGER PRIMARY KEY, run_id TEXT, event_type TEXT, data TEXT)")
        connection.execute("INSERT INTO run_events VALUES (1, 'past', 'node', '{\"n\":1}'), (2, 'past', 'end', null)")
    async with site(tmp_path / "data") as s:
        await s.make("r1", kind="report")
        await s.make("r2")
        to = ("--url", s.served.url, "--token", ADMIN)

        listed = await run("runs", "list", "--kind", "report", *to)
        assert [json.loads(line)["id"] for line in listed.lines] == ["r1"]
        assert json.loads((await run("runs", "show", "r2", *to)).out)["status"] == "queued"
        assert (await run("runs", "cancel", "r2", *to)).code == 0
        assert json.loads((await run("runs", "show", "r2", *to)).out)["status"] == "cancelled"
        assert (await run("runs", "show", "none", *to)).code == 66

        arguments = ("runs", "import", "--from", f"sqlite:///{old}", "--table", "run_events", *to)
        dry = await run(*arguments, "--dry-run")
        assert dry.code == 0, dry.err
        assert json.loads(dry.lines[0])["stored"] == 2
        done = await run(*arguments)
        assert (done.code, json.loads(done.lines[0])["verified"]) == (0, True)
        page = await s.good("GET", "/runs/past/events?format=raw")
        assert page["events"][0]["n"] == 1
        assert json.loads((await run(*arguments)).lines[0])["stored"] == 0


async def test_what_others_named_their_runs_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    async with site(tmp_path / "data") as s:
        await s.make("r1", owner="[/bold]", title="\x1b]0;evil\x07 [red]title")
        env = clean_environment(tmp_path, TAILRACE_URL=s.served.url, TAILRACE_TOKEN=ADMIN)
        listed = await on_terminal("runs", "list", cwd=tmp_path, env=env, seconds=90)

    assert listed.code == 0
    assert "[/bold]" in listed.out
    assert "]0;evil" in listed.out
    assert "\x1b]" not in listed.out
