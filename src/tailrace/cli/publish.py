"""`tailrace publish`: events from arguments, lines of stdin, or NDJSON."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailrace.cli.console import complain, on_terminal, out, run, say
from tailrace.cli.options import TokenOption, UrlOption
from tailrace.cli.target import Target, find_target
from tailrace.errors import Malformed, TailraceError

if TYPE_CHECKING:
    from tailrace.core.event import Event
    from tailrace.eventlog.base import Appended

__all__ = ["publish"]

BATCH = 250
LINGER_SECONDS = 0.05
"""Lines that come this close together leave together."""
MAX_LINE_BYTES = 9_437_184
PATIENT_SECONDS = 60.0


def publish(
    stream: Annotated[str, typer.Argument(help="Where to, e.g. run:42.")],
    data: Annotated[
        list[str] | None, typer.Argument(help="One event each: JSON, or else a text. Without: the lines of stdin.")
    ] = None,
    type_: Annotated[str, typer.Option("--type", "-t", help="Type of the events.")] = "note",
    data_option: Annotated[str | None, typer.Option("--data", "-d", help="The same as the argument.")] = None,
    uid: Annotated[
        str | None, typer.Option("--uid", help="Publish once, however often you run it. Lines get UID-1, UID-2, …")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="Conflation key.")] = None,
    ndjson: Annotated[
        bool, typer.Option("--ndjson", help="Each line of stdin is a whole event: {type, data, uid?, key?, actor?}.")
    ] = False,
    text: Annotated[bool, typer.Option("--text", help="Never read JSON: every line is a text.")] = False,
    close: Annotated[bool, typer.Option("--close", help="End the stream afterwards.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no ids.")] = False,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Publish events and print their ids.

    A line is printed when its event is in the log; a line may be sent again after a failure without becoming a second
    event.

    **Examples**

    `tailrace publish run:42 '{"text": "hello"}'`

    `tailrace publish user:u7 --type task.done --data '{"task": 9}' --uid task-9-done`

    `tail -f app.log | tailrace publish run:app --type line --text`

    `tailrace publish run:42 --ndjson < events.ndjson`
    """
    from tailrace.core.names import StreamName

    values = list(data or [])
    if data_option is not None:
        values.append(data_option)
    if ndjson and values:
        raise typer.BadParameter("--ndjson reads stdin; leave out the data")
    StreamName.parse(stream)
    reader = _Reader(type_, uid, key, ndjson=ndjson, text=text)
    target = find_target(url, token)
    lines = _given(values) if values else _stdin_lines()
    if not values and sys.stdin.isatty():
        say("one event per line; Ctrl-D ends")
    run(_publish(target, stream, reader, lines, close=close, quiet=quiet, single=len(values) == 1))


class _Reader:
    """Makes events of lines."""

    def __init__(self, type_: str, uid: str | None, key: str | None, *, ndjson: bool, text: bool) -> None:
        self._type = type_
        self._uid = uid
        self._key = key
        self._ndjson = ndjson
        self._text = text
        self._count = 0

    def event(self, line: bytes, *, single: bool) -> Event | None:
        """The event of a line; None: an empty line.

        Raises:
            Malformed: with the line's number.
        """
        from tailrace.core.codec import decode_events, prepare
        from tailrace.core.event import Event

        self._count += 1
        if not line.strip():
            return None
        try:
            if self._ndjson:
                return decode_events(line, "application/json")[0]
            uid = self._uid if single or self._uid is None else f"{self._uid}-{self._count}"
            event = Event(self._type, self._value(line), uid, self._key)
            prepare(event, max_bytes=MAX_LINE_BYTES)
            return event
        except TailraceError as exc:
            where = "" if single else f"line {self._count}: "
            # A line is a batch of one: its index says nothing.
            facts = {name: value for name, value in exc.data.items() if name != "index"}
            raise type(exc)(f"{where}{exc.detail.removeprefix('event 0: ')}", **facts) from None

    def _value(self, line: bytes) -> Any:
        from tailrace.core.codec import minify

        if not self._text:
            try:
                return minify(line, max_bytes=MAX_LINE_BYTES)
            except Malformed:
                pass
        return line.decode("utf-8", "replace")


async def _given(values: list[str]) -> AsyncIterator[list[bytes]]:
    yield [value.encode("utf-8", "surrogateescape") for value in values]


async def _stdin_lines() -> AsyncIterator[list[bytes]]:
    """Lines as they come, those that come together in one list."""
    import asyncio
    import threading

    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    room = threading.Semaphore(BATCH * 4)

    def read() -> None:
        # Not sys.stdin: Python closes that one at its end, and dies when this thread waits inside of it.
        stdin = open(sys.stdin.fileno(), "rb", closefd=False)  # noqa: SIM115 - as long as the process
        while line := stdin.readline(MAX_LINE_BYTES):
            room.acquire()
            loop.call_soon_threadsafe(queue.put_nowait, line)
        loop.call_soon_threadsafe(queue.put_nowait, None)

    threading.Thread(target=read, name="stdin", daemon=True).start()
    ended = False
    while not ended:
        batch = [await queue.get()]
        end = loop.time() + LINGER_SECONDS
        while batch[-1] is not None and len(batch) < BATCH and (left := end - loop.time()) > 0:
            try:
                async with asyncio.timeout(left):
                    batch.append(await queue.get())
            except TimeoutError:
                break
        ended = batch[-1] is None
        lines = [line.rstrip(b"\r\n") for line in batch if line is not None]
        room.release(len(lines) or 1)
        yield lines


async def _publish(
    target: Target,
    stream: str,
    reader: _Reader,
    batches: AsyncIterator[list[bytes]],
    *,
    close: bool,
    quiet: bool,
    single: bool,
) -> None:
    count = 0
    async with target.client() as client:
        async for lines in batches:
            failed: TailraceError | None = None
            events: list[Event] = []
            for line in lines:
                try:
                    event = reader.event(line, single=single)
                except TailraceError as exc:
                    failed = exc
                    break
                if event is not None:
                    events.append(event)
            if events:
                count += await _send(client, stream, events, quiet=quiet, before=count)
            if failed is not None:
                raise failed
            _progress(count, single=single)
        if close:
            await client.close_stream(stream)


async def _send(client: Any, stream: str, events: list[Event], *, quiet: bool, before: int) -> int:
    try:
        # Once it flows, a restart of the server is waited for; at the start a wrong address is told at once.
        seconds = PATIENT_SECONDS if before else None
        appended: list[Appended] = await client.publish_many(stream, events, timeout_seconds=seconds)
    except TailraceError as exc:
        if before:
            complain(f"{before} events were published before this")
        raise exc
    if not quiet:
        for each in appended:
            if on_terminal():
                out().print(f"[green]✓[/] {each.id}" + (" [yellow]was there already[/]" if each.duplicate else ""))
            else:
                print(each.id)
        sys.stdout.flush()
    return len(appended)


def _progress(count: int, *, single: bool) -> None:
    """On a terminal whose stdout goes elsewhere: how far it is."""
    if not single and sys.stderr.isatty() and not on_terminal():
        sys.stderr.write(f"\r{count} events published")
        sys.stderr.flush()
