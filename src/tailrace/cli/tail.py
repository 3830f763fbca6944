"""`tailrace tail`: follow streams."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailrace.cli.console import on_terminal, run, say
from tailrace.cli.options import TokenOption, UrlOption, instant
from tailrace.cli.target import Target, find_target

if TYPE_CHECKING:
    from asyncio import TimerHandle

    from tailrace.cli.pretty import Pretty
    from tailrace.client.backend import Link
    from tailrace.client.client import Tailrace
    from tailrace.core.event import Item

__all__ = ["tail"]

FIRST_SECONDS = 3.0
"""A server that does not answer at the start is told at once; later it is waited for."""
QUIET_SECONDS = 1.0


def tail(
    streams: Annotated[list[str], typer.Argument(help="One or more streams, e.g. run:42.")],
    since: Annotated[
        str | None,
        typer.Option(
            "--since", help="Where to begin: a cursor, an id, a time (2025-01-31T12:00), or how long ago (10m)."
        ),
    ] = None,
    from_start: Annotated[bool, typer.Option("--from-start", help="Begin at the first record there is.")] = False,
    last: Annotated[int | None, typer.Option("-n", "--last", min=0, help="Begin with the last N records.")] = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Wait for what comes.")] = True,
    json: Annotated[bool | None, typer.Option("--json/--pretty", help="Else JSON unless on a terminal.")] = None,
    types: Annotated[list[str] | None, typer.Option("--type", "-t", help="Only these types. Repeat it.")] = None,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Follow streams until they end.

    Reconnects by itself and goes on where it was; what is lost for good is told as a gap. On a terminal records are
    easy to read; otherwise each is a line of JSON: `{id, prev, stream, type, time, data}`, and gaps and ends are lines
    with `control`. Without a place to begin, streams of runs begin at their first record, those of users now.

    **Examples**

    `tailrace tail run:42`

    `tailrace tail run:42 --since 10m --json | jq .data`

    `tailrace tail user:u7 system:all -n 20`
    """
    if sum((since is not None, from_start, last is not None)) > 1:
        raise typer.BadParameter("--since, --from-start and -n exclude each other")
    place: str | datetime | None = "0" if from_start else instant(since) if since is not None else None
    plain = not on_terminal() if json is None else json
    run(_tail(find_target(url, token), streams, place, last, _printer(streams, plain, types), follow=follow))


class _Lines:
    """Items as lines of JSON."""

    def __init__(self, types: list[str] | None) -> None:
        self._types = frozenset(types or ())

    def show(self, item: Item) -> None:
        """Print an item."""
        from tailrace.core.event import Record
        from tailrace.core.frames import control_payload, envelope

        if isinstance(item, Record):
            if self._types and item.type not in self._types:
                return
            line = envelope(item)
        else:
            line = control_payload(item)
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()


def _printer(streams: list[str], plain: bool, types: list[str] | None) -> _Lines | Pretty:
    if plain:
        return _Lines(types)
    from tailrace.cli.pretty import Pretty

    return Pretty(streams, types)


async def _tail(
    target: Target,
    streams: list[str],
    place: str | datetime | None,
    last: int | None,
    printer: Any,
    *,
    follow: bool,
) -> None:
    async with target.client() as client:
        since: Any = place
        if last is not None:
            since = {stream: await _show_last(client, stream, last, printer) for stream in streams}
        if not follow:
            if last is None:
                await _show_history(client, streams, since, printer)
            return
        links = _Links(f"nothing new in {', '.join(streams)}; waiting for it, Ctrl-C ends")
        subscription = client.subscribe(*streams, since=since, give_up_seconds=FIRST_SECONDS, on_link=links)
        async for item in subscription:
            subscription.give_up_seconds = None
            links.heard()
            printer.show(item)


class _Links:
    """Says when the connection is lost and when it is back; and to a person, why nothing is to be seen."""

    def __init__(self, quiet: str) -> None:
        self._down = False
        self._was_up = False
        self._quiet = quiet
        self._waiting: TimerHandle | None = None

    def heard(self) -> None:
        """Something came."""
        if self._waiting is not None:
            self._waiting.cancel()

    def __call__(self, link: Link) -> None:
        import asyncio

        if link.up and not self._was_up and sys.stderr.isatty():
            self._waiting = asyncio.get_running_loop().call_later(QUIET_SECONDS, say, self._quiet)
        if not link.up and self._was_up and not self._down:
            self._down = True
            say(f"connection lost ({link.detail}); trying again", style="yellow")
        elif link.up and self._down:
            self._down = False
            # Whether something was missed is told by a gap, and only then.
            say("connected again", style="green")
        self._was_up = self._was_up or link.up


async def _show_last(client: Tailrace, stream: str, last: int, printer: Any) -> str:
    """Print the last records and return where to go on."""
    from tailrace.errors import NotFound

    records = await client.history(stream, limit=last, reverse=True).records() if last else []
    for record in reversed(records):
        printer.show(record)
    if records:
        return str(records[0].id)
    try:
        return str((await client.info(stream)).last_id or "0")
    except NotFound:
        return "0"


async def _show_history(client: Tailrace, streams: list[str], since: str | datetime | None, printer: Any) -> None:
    """Print what is there now, and no more."""
    from tailrace.core.cursor import Since, Special, parse_cursor
    from tailrace.core.ids import ZERO, EntryId
    from tailrace.core.names import StreamName

    names = [StreamName.parse(stream) for stream in streams]
    places = parse_cursor(since, names) if isinstance(since, str) else {}
    for name in names:
        place = places.get(name)
        if place is Special.NOW:
            continue
        start = since if isinstance(since, datetime) else EntryId(place.ms, 0) if isinstance(place, Since) else None
        cursor = place if isinstance(place, EntryId) and place != ZERO else None
        async for item in client.history(name, start=start, since=cursor):
            printer.show(item)
