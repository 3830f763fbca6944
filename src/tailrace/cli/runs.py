"""`tailrace runs`: what runs there are, ending one, and taking over an old table of events."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailrace.cli.console import guarded, on_terminal, run, say, show_table
from tailrace.cli.exits import ExitCode
from tailrace.cli.options import TokenOption, UrlOption
from tailrace.cli.target import find_target
from tailrace.errors import ConfigError

if TYPE_CHECKING:
    from tailrace.features.runs.importing import RunReport, Source
    from tailrace.features.runs.model import Run
    from tailrace.features.runs.remote import HttpRuns, RunPage

__all__ = ["app"]

app = typer.Typer(help="Runs: list, show, cancel, import.", no_args_is_help=True, rich_markup_mode="markdown")


@app.command("list")
@guarded
def list_(
    status: Annotated[str | None, typer.Option("--status", help="Only these, separated by commas.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only this kind.")] = None,
    owner: Annotated[str | None, typer.Option("--owner", help="Only this owner's.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=200, help="At most so many.")] = 50,
    cursor: Annotated[str | None, typer.Option("--cursor", help="Where the page before ended.")] = None,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """List runs, the newest first: a table on a terminal, one JSON object per line otherwise.

    **Example**

    `tailrace runs list --status running,queued`
    """
    given = {"status": status, "kind": kind, "owner": owner, "cursor": cursor, "limit": limit}
    page = run(_list(url, token, {name: value for name, value in given.items() if value is not None}))
    if not on_terminal():
        for each in page.runs:
            print(json.dumps(_plain(each)))
        return
    _show(page.runs)
    if page.next_cursor is not None:
        say(f"more: --cursor {page.next_cursor}")


@app.command("show")
@guarded
def show(
    run_id: Annotated[str, typer.Argument(help="Which run.")], url: UrlOption = None, token: TokenOption = None
) -> None:
    """Print one run as JSON.

    **Example**

    `tailrace runs show 42 | jq .status`
    """
    print(json.dumps(_plain(run(_get(url, token, run_id))), indent=2 if on_terminal() else None))


@app.command("cancel")
@guarded
def cancel(
    run_id: Annotated[str, typer.Argument(help="Which run.")], url: UrlOption = None, token: TokenOption = None
) -> None:
    """Ask a run to end. Its producer is told within a second; a queued run is cancelled at once."""
    found = run(_cancel(url, token, run_id))
    say(f"{found.id} is {found.status}" + ("" if found.status.ended else "; its producer is told to stop"))


@app.command("import")
@guarded
def import_(
    database: Annotated[str, typer.Option("--from", metavar="URL", help="The database that has the table.")],
    table: Annotated[str, typer.Option("--table", help="Its name, with its schema where it has one.")],
    id_column: Annotated[str, typer.Option(help="Unique; orders the rows of a run.")] = "id",
    run_column: Annotated[str, typer.Option(help="Which run a row belongs to.")] = "run_id",
    type_column: Annotated[str, typer.Option(help="The event's type.")] = "event_type",
    data_column: Annotated[str, typer.Option(help="The event's data: JSON, or text.")] = "data",
    kind: Annotated[str, typer.Option(help="The kind of the streams.")] = "run",
    only: Annotated[list[str] | None, typer.Option("--run", help="Only this run; repeatable.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Store nothing; count.")] = False,
    close: Annotated[bool, typer.Option("--close", help="End each stream: it expires after its kind's time.")] = False,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Make streams out of the rows of an SQL table. Start it again after any break: it goes on where it was.

    One line of JSON for each run; the exit code is 1 when a row was refused or a count is wrong.

    **Example**

    `tailrace runs import --from postgresql://app@db/app --table run_events --dry-run`
    """
    from tailrace.features.runs.importing import Source

    source = Source(table=table, id=id_column, run=run_column, type=type_column, data=data_column, kind=kind)
    options = {"only": only or [], "dry_run": dry_run, "close": close}
    reports = run(_import(database, source, url, token, options))
    rows, stored = sum(each.rows for each in reports), sum(each.stored for each in reports)
    say(f"{len(reports)} runs, {rows} rows, {stored} {'would be stored' if dry_run else 'stored now'}")
    if any(each.refused is not None or each.verified is False for each in reports):
        raise typer.Exit(ExitCode.FAILED)


async def _import(
    database: str, source: Source, url: str | None, token: str | None, options: dict[str, Any]
) -> list[RunReport]:
    from pathlib import Path

    import msgspec

    from tailrace.features.runs.importing import Importer
    from tailrace.sql.database import Database
    from tailrace.sql.url import database_url

    found: list[RunReport] = []
    opened = Database(database_url(database, Path()), timeout=60.0, raw_json=True)
    try:
        async with find_target(url, token).client(timeout_seconds=60.0) as client:
            importer = Importer(opened, source, client, dry_run=options["dry_run"], close=options["close"])
            async for report in importer.runs(only=options["only"]):
                print(msgspec.json.encode(report).decode(), flush=True)
                found.append(report)
    finally:
        await opened.aclose()
    return found


async def _list(url: str | None, token: str | None, filters: dict[str, str | int]) -> RunPage:
    backend = _backend(url, token)
    try:
        return await backend.find(**filters)
    finally:
        await backend.aclose()


async def _get(url: str | None, token: str | None, run_id: str) -> Run:
    backend = _backend(url, token)
    try:
        return await backend.get(run_id)
    finally:
        await backend.aclose()


async def _cancel(url: str | None, token: str | None, run_id: str) -> Run:
    backend = _backend(url, token)
    try:
        return await backend.cancel(run_id)
    finally:
        await backend.aclose()


def _backend(url: str | None, token: str | None) -> HttpRuns:
    from tailrace.features.runs.remote import HttpRuns

    target = find_target(url, token)
    if not target.url.startswith(("http://", "https://")):
        raise ConfigError("runs are asked of a gateway: give its http:// address by --url")
    return HttpRuns(target.url, target.token)


def _plain(found: Run) -> dict[str, Any]:
    import msgspec

    plain: dict[str, Any] = msgspec.to_builtins(found)
    return plain


def _show(runs: list[Run]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("run", "status", "kind", "owner", "created", "title"):
        table.add_column(title)
    for each in runs:
        created = datetime.fromtimestamp(each.created_at / 1_000, UTC).astimezone()
        title = each.title if len(each.title) <= 60 else f"{each.title[:59]}…"
        owner, title = escape(_visible(each.owner)), escape(_visible(title))
        table.add_row(each.id, each.status.value, each.kind, owner, f"{created:%Y-%m-%d %H:%M:%S}", title)
    show_table(table)


def _visible(text: str) -> str:
    """Others wrote it: the terminal obeys none of it."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)
