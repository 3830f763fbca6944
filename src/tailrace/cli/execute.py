"""`tailrace exec`: run a command and stream its output."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import sys
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailrace.cli.console import complain, run, say
from tailrace.cli.exits import ExitCode
from tailrace.cli.options import TokenOption, UrlOption
from tailrace.cli.target import SPOOL_FOLDER, Target, find_target
from tailrace.errors import TailraceError

if TYPE_CHECKING:
    import asyncio

    from tailrace.cli.run.session import Recorder, Session
    from tailrace.client.spool import Entry, SpoolFile
    from tailrace.core.names import StreamName

__all__ = ["execute", "spool_folder"]


def execute(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What to run.")],
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

    Exits with the command's code; 128 + the signal that ended it; 127 when there is no such command, 126 when it cannot
    be executed, 125 when tailrace failed before.

    **Examples**

    `tailrace exec -- make test`

    `tailrace exec --id nightly-7 -- ./train.py --epochs 3`
    """
    name = _stream_name(run_id, stream)
    try:
        target = find_target(url, token)
        from tailrace.core.names import StreamName

        code = _execute(
            target,
            StreamName.parse(name),
            command,
            folder=spool_folder(target, spool),
            spool_bytes=spool_bytes,
            grace=grace,
            wait=wait,
            quiet=quiet,
        )
    except TailraceError as exc:
        complain(str(exc))
        raise typer.Exit(ExitCode.EXEC_FAILED) from None
    raise typer.Exit(code)


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


def _execute(
    target: Target,
    stream: StreamName,
    command: list[str],
    *,
    folder: Path,
    spool_bytes: int,
    grace: float,
    wait: float,
    quiet: bool,
) -> int:
    from tailrace.cli.run.child import CannotStart, Child
    from tailrace.cli.run.session import Recorder, Session, epilogue
    from tailrace.client.spool import SpoolFile

    uid = secrets.token_hex(6)
    name = re.sub(r"[^A-Za-z0-9.-]", "_", stream)
    last = epilogue(stream, uid)
    spool = SpoolFile.create(folder, name, target.spool_target(folder), epilogue=last, max_bytes=spool_bytes)
    environment = os.environ | {"TAILRACE_STREAM": stream}
    try:
        child = Child.start(command, env=environment)
    except CannotStart as exc:
        complain(str(exc))
        spool.finish()
        spool.close()
        return exc.code
    recorder = Recorder(spool, stream, uid)
    recorder.started(command, child.process.pid, terminal=child.terminal)
    if sys.stderr.isatty() and not quiet:
        say(f"{stream}  (follow it with: tailrace tail {shlex.quote(stream)})")
    session = Session(child, recorder, grace_seconds=grace, quiet=quiet)
    courier = Courier(target, folder, spool, recorder)
    return run(courier.accompany(session, wait))


class Courier:
    """Delivers what the session records, and what others left in the same folder."""

    def __init__(self, target: Target, folder: Path, spool: SpoolFile, recorder: Recorder) -> None:
        self._target = target
        self._folder = folder
        self._spool = spool
        self._recorder = recorder
        self._refused: TailraceError | None = None
        self._trouble: TailraceError | None = None

    async def accompany(self, session: Session, wait: float) -> int:
        """Run the session beside the deliveries; afterwards wait a while for what is left. Return the exit code."""
        import asyncio

        from tailrace.client.client import open_backend
        from tailrace.client.emitting import Delivery
        from tailrace.client.spool import orphans

        backend = open_backend(self._target.url, self._target.token or "")
        others = list(orphans(self._folder, self._target.spool_target(self._folder)))
        mine = Delivery(backend, self._spool, threaded=False, on_refused=self._on_refused, on_trouble=self._on_trouble)
        deliveries = [mine, *(Delivery(backend, other, threaded=False) for other in others)]
        self._recorder.on_put = mine.wake
        tasks = [asyncio.create_task(delivery.run()) for delivery in deliveries]
        try:
            code = await session.run()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    for delivery in deliveries:
                        await _first_of(delivery.wait_empty(), tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await backend.aclose()
            for spool in (self._spool, *others):
                spool.close()
            self._report()
        return code

    def _on_refused(self, entry: Entry, error: TailraceError) -> None:
        if self._refused is None:
            self._refused = error
            complain(f"{entry.s} does not take this: {error}")

    def _on_trouble(self, error: TailraceError | None) -> None:
        if error is not None and self._trouble is None:
            say(f"not delivered for now, the output is kept on disk: {error}", style="yellow")
        elif error is None and self._trouble is not None:
            say("delivery goes on", style="green")
        self._trouble = error

    def _report(self) -> None:
        if self._spool.pending:
            why = f": {self._trouble}" if self._trouble is not None else ""
            complain(
                f"{self._spool.pending} events are not delivered yet{why}",
                f"they are kept in {self._folder}; the next `tailrace exec` delivers them",
            )
        if self._recorder.lost:
            complain(f"{self._recorder.lost} pieces of output were not recorded: the spool was full")


async def _first_of(waiting: Coroutine[Any, Any, None], tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait for a delivery, but not for one whose task has died."""
    import asyncio

    waiter = asyncio.ensure_future(waiting)
    try:
        done, _ = await asyncio.wait([waiter, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        waiter.cancel()
