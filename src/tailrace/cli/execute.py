"""`tailrace exec`: run a command and stream its output."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from tailrace.cli.console import complain, run, say
from tailrace.cli.exits import ExitCode
from tailrace.cli.options import TokenOption, UrlOption
from tailrace.cli.target import SPOOL_FOLDER, Target, find_target
from tailrace.errors import TailraceError

__all__ = ["execute", "spool_folder"]


def execute(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="What to run, after `--`.")],
    run_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Name of the run: its stream is run:ID. Else a new one.")
    ] = None,
    stream: Annotated[str | None, typer.Option("--stream", help="Another stream than run:ID.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show the output here.")] = False,
    grace: Annotated[
        float, typer.Option("--grace", min=0, help="Seconds between a cancel and SIGTERM, and from there to SIGKILL.")
    ] = 10.0,
    wait: Annotated[
        float, typer.Option("--wait", min=0, help="Seconds to wait for the delivery when the command has ended.")
    ] = 10.0,
    spool: Annotated[
        Path | None, typer.Option("--spool", help="Folder for what is not delivered yet. Else `.tailrace/spool`.")
    ] = None,
    spool_bytes: Annotated[
        int, typer.Option("--spool-bytes", min=4_096, help="Most bytes that may wait there.")
    ] = 268_435_456,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Run a command and stream its output as a run.

    Every line becomes an event `run.output` of the stream, stdout and stderr marked; `run.started` and `run.exited`
    are around them. The output is shown here too, in colour if this is a terminal. The command runs on when the server
    is away: what it says is kept on disk and delivered afterwards, in order, once; what is left when it ends, by the
    next `tailrace exec` here.

    Where the server keeps runs, it is one of them: listed with its status, lost when this process dies, and cancelled
    by `POST /runs/ID/cancel`: SIGTERM at once, SIGKILL after the grace time.

    Exits with the command's code; 128 + the signal that ended it; 127 when there is no such command, 126 when it cannot
    be executed, 125 when tailrace failed before.

    **Examples**

    `tailrace exec -- make test`

    `tailrace exec --id nightly-7 -- ./train.py --epochs 3`
    """
    options = _Options(spool, spool_bytes, grace, wait, quiet)
    name = _stream_name(run_id, stream)
    try:
        raise typer.Exit(_execute(find_target(url, token), name, command, options))
    except TailraceError as exc:
        complain(str(exc))
        raise typer.Exit(ExitCode.EXEC_FAILED) from None


class _Options(msgspec.Struct, frozen=True):
    spool: Path | None
    spool_bytes: int
    grace: float
    wait: float
    quiet: bool


def spool_folder(target: Target, given: Path | None) -> Path:
    """Where undelivered events wait."""
    if given is not None:
        return given
    if target.folder is not None:
        return target.folder / SPOOL_FOLDER
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "tailrace" / "spool"


def _stream_name(run_id: str | None, stream: str | None) -> str:
    if stream is not None:
        if run_id is not None:
            raise typer.BadParameter("--id and --stream exclude each other")
        return stream
    return f"run:{run_id or time.strftime('%Y%m%d-%H%M%S-') + secrets.token_hex(3)}"


def _execute(target: Target, name: str, command: list[str], options: _Options) -> int:
    from tailrace.cli.run.child import CannotStart, Child
    from tailrace.cli.run.courier import Courier
    from tailrace.cli.run.registration import RunLabel
    from tailrace.cli.run.session import Recorder, Session, epilogue
    from tailrace.client.spool import SpoolFile
    from tailrace.core.names import StreamName

    stream = StreamName.parse(name)
    folder = spool_folder(target, options.spool)
    uid = secrets.token_hex(6)
    spool = SpoolFile.create(
        folder,
        re.sub(r"[^A-Za-z0-9.-]", "_", stream),
        target.spool_target(folder),
        epilogue=epilogue(stream, uid),
        max_bytes=options.spool_bytes,
    )
    try:
        child = Child.start(command, env=os.environ | {"TAILRACE_STREAM": stream})
    except CannotStart as exc:
        complain(str(exc))
        spool.finish()
        spool.close()
        return exc.code
    recorder = Recorder(spool, stream, uid)
    recorder.started(command, child.process.pid, terminal=child.terminal)
    if sys.stderr.isatty() and not options.quiet:
        say(f"{stream}  (follow it with: tailrace tail {shlex.quote(stream)})")
    session = Session(child, recorder, grace_seconds=options.grace, quiet=options.quiet)
    label = RunLabel.of(stream, command, os.fsencode(os.getcwd()).decode("utf-8", "replace"))
    return run(Courier(target, folder, spool, recorder, label).accompany(session, options.wait))
