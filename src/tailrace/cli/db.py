"""`tailrace db`: the tables of what must outlive the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from tailrace.cli.console import guarded, say
from tailrace.cli.exits import ExitCode

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

__all__ = ["DatabaseOption", "app", "database_of"]

app = typer.Typer(
    help="The SQL database of runs: its tables, up to this version or back.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

DatabaseOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--database", metavar="URL", help="Else TAILRACE_DATABASE_URL, else `tailrace.db` in the data folder."
    ),
]


def database_of(database: str | None) -> URL:
    """The database that is meant.

    Raises:
        ConfigError: it cannot be used, or the settings cannot be read.
    """
    from tailrace.config import load_settings
    from tailrace.sql.url import database_url

    settings = load_settings()
    named = settings.database_url.get_secret_value() if settings.database_url is not None else None
    return database_url(database or named, settings.data_dir)


@app.command("upgrade")
@guarded
def upgrade(database: DatabaseOption = None) -> None:
    """Bring the tables up to this version. Again is the same as once.

    **Example**

    `TAILRACE_DATABASE_URL=postgresql://app@db/tailrace tailrace db upgrade`
    """
    from tailrace.sql import migrate

    url = database_of(database)
    migrate.upgrade(url)
    say(f"the tables are at version {migrate.current(url)}")


@app.command("current")
@guarded
def current(database: DatabaseOption = None) -> None:
    """Print the version that the database has, or `none`."""
    from tailrace.sql import migrate

    print(migrate.current(database_of(database)) or "none")


@app.command("check")
@guarded
def check(database: DatabaseOption = None) -> None:
    """Compare the database with what this version needs; exit code 1 when they differ."""
    from tailrace.sql import migrate

    url = database_of(database)
    version = migrate.current(url)
    if version is None or migrate.is_behind(url):
        say(f"the database is at {version or 'none'}, and {migrate.head()} is needed: tailrace db upgrade", style="red")
        raise typer.Exit(ExitCode.FAILED)
    differences = migrate.differences(url)
    for each in differences:
        print(each)
    if differences:
        raise typer.Exit(ExitCode.FAILED)
    say(f"the tables are those of version {version}")


@app.command("downgrade")
@guarded
def downgrade(
    revision: Annotated[str, typer.Argument(help="A version, or `base`: no tables at all.")],
    database: DatabaseOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask. What the undone steps held is lost.")] = False,
) -> None:
    """Undo steps, with what they hold."""
    from tailrace.sql import migrate

    url = database_of(database)
    if not yes:
        typer.confirm(f"Undo steps down to {revision}? What their tables hold is lost.", abort=True)
    migrate.downgrade(url, revision)
    say(f"the tables are at version {migrate.current(url) or 'none'}")
