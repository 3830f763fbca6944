"""The command line's table of contents. `--help` must stay quick: commands import what they need when they run."""

from __future__ import annotations

from typing import Annotated

import typer

from tailrace.cli import bench, bridge, db, dev, doctor, execute, info, publish, rollout, runs, serve, tail, token
from tailrace.cli.console import guarded
from tailrace.cli.exits import TABLE

__all__ = ["app"]

_EXITS = "\n\n".join(f"* `{code.value}` {text}" for code, text in TABLE)
_EXAMPLES = """
**Examples**

* `tailrace dev` starts everything on this machine
* `tailrace exec -- make test` streams a command's output as a run
* `tailrace tail run:42` follows a stream
* `tailrace publish run:42 --type note '{"text": "hello"}'` publishes an event
"""

app = typer.Typer(
    name="tailrace",
    help="Durable, resumable, live event streams on Redis Streams.\n" + _EXAMPLES,
    epilog=f"**Exit codes**\n\n{_EXITS}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from tailrace import __version__

        print(f"tailrace {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version


_RUN = "Run"
_STREAMS = "Streams"
_OPERATE = "Operate"
app.command("dev", rich_help_panel=_RUN)(guarded(dev.dev))
app.command("serve", rich_help_panel=_RUN)(guarded(serve.serve))
app.command(
    "exec",
    rich_help_panel=_STREAMS,
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False},
)(guarded(execute.execute))
app.command("publish", rich_help_panel=_STREAMS)(guarded(publish.publish))
app.command("tail", rich_help_panel=_STREAMS)(guarded(tail.tail))
app.command("info", rich_help_panel=_STREAMS)(guarded(info.info))
app.command("token", rich_help_panel=_OPERATE)(guarded(token.token))
app.command("doctor", rich_help_panel=_OPERATE)(guarded(doctor.doctor))
app.add_typer(rollout.app, name="rollout", rich_help_panel=_OPERATE)
app.command("bridge", rich_help_panel=_OPERATE)(guarded(bridge.bridge))
app.add_typer(runs.app, name="runs", rich_help_panel=_STREAMS)
app.add_typer(db.app, name="db", rich_help_panel=_OPERATE)
app.add_typer(bench.app, name="bench", rich_help_panel=_OPERATE)
