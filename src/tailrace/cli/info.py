"""`tailrace info`: what a stream is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailrace.cli.console import complain, on_terminal, run, show_table
from tailrace.cli.exits import ExitCode
from tailrace.cli.options import TokenOption, UrlOption
from tailrace.cli.target import Target, find_target

if TYPE_CHECKING:
    from tailrace.eventlog.base import StreamInfo

__all__ = ["info"]


def info(
    streams: Annotated[list[str], typer.Argument(help="One or more streams, e.g. run:42.")],
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Describe streams: state, length, first and last id, expiry.

    A table on a terminal, one JSON object per line otherwise.

    **Examples**

    `tailrace info run:42`

    `tailrace info run:42 run:43 | jq .length`
    """
    infos = run(_infos(find_target(url, token), streams))
    found = [info for info in infos if info is not None]
    if found and on_terminal():
        _show(found)
    elif found:
        import json

        for each in found:
            print(json.dumps(_plain(each)))
    if len(found) < len(infos):
        raise typer.Exit(ExitCode.NOT_FOUND)


async def _infos(target: Target, streams: list[str]) -> list[StreamInfo | None]:
    """What each stream is; None, and a word about it, where there is none."""
    from tailrace.errors import NotFound

    found: list[StreamInfo | None] = []
    async with target.client() as client:
        for stream in streams:
            try:
                found.append(await client.info(stream))
            except NotFound as error:
                complain(f"{stream}: {error}")
                found.append(None)
    return found


def _plain(info: StreamInfo) -> dict[str, Any]:
    return {
        "stream": info.stream,
        "state": info.state.value,
        "length": info.length,
        "first_id": str(info.first_id) if info.first_id is not None else None,
        "last_id": str(info.last_id) if info.last_id is not None else None,
        "incarnation": info.incarnation,
        "ttl_seconds": info.ttl_seconds,
        "memory_bytes": info.memory_bytes,
    }


def _show(infos: list[StreamInfo]) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title, justify in (
        ("stream", "left"),
        ("state", "left"),
        ("records", "right"),
        ("first", "left"),
        ("last", "left"),
        ("expires in", "right"),
        ("memory", "right"),
    ):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    for each in infos:
        table.add_row(
            each.stream,
            f"[green]{each.state.value}[/]" if each.state.value == "open" else each.state.value,
            f"{each.length:,}",
            str(each.first_id or "-"),
            str(each.last_id or "-"),
            f"{each.ttl_seconds:,.0f} s" if each.ttl_seconds is not None else "never",
            f"{each.memory_bytes:,} B" if each.memory_bytes is not None else "-",
        )
    show_table(table)
