"""`tailrace rollout`: from Pub/Sub to streams in steps, and back with one command."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from tailrace.cli.console import guarded, on_terminal, out, run, say, show_table
from tailrace.cli.options import duration
from tailrace.errors import ConfigError, LogError

if TYPE_CHECKING:
    from tailrace.core.kinds import Kinds
    from tailrace.eventlog.redis.rollout import RedisRollout
    from tailrace.eventlog.rollout import Change

__all__ = ["app"]

app = typer.Typer(
    help="Move streams from Pub/Sub to Redis Streams in steps, and back with one command.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

KindOption: TypeAlias = Annotated[str, typer.Option("--kind", "-k", help="Which kind of stream.")]
ByOption: TypeAlias = Annotated[str | None, typer.Option("--by", help="Who changes it. Else your name here.")]
ReasonOption: TypeAlias = Annotated[str, typer.Option("--reason", "-m", help="Why; it is recorded.")]
RedisOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--redis", metavar="URL", help="Else TAILRACE_REDIS_URL, else the embedded Redis in `.tailrace`."),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command("status")
@guarded
def status(redis: RedisOption = None, as_json: JsonOption = False) -> None:
    """Show how far each kind has moved, what the guards say, and the last changes.

    **Example**

    `tailrace rollout status --json | jq .kinds.workflow.percent`
    """
    found = run(_status(redis))
    if as_json or not on_terminal():
        print(json.dumps(found))
    else:
        _show(found)


@app.command("set")
@guarded
def set_(
    percent: Annotated[int, typer.Argument(min=0, max=100, help="How many per cent of the streams: 10, 50, 100.")],
    kind: KindOption = "workflow",
    hold: Annotated[
        str | None,
        typer.Option(
            "--hold", metavar="TIME", help="Go on to 50 and 100 after this long each, if the guards are green."
        ),
    ] = None,
    by: ByOption = None,
    reason: ReasonOption = "",
    redis: RedisOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move so many per cent of a kind's streams to Redis Streams.

    A stream that is on stays on when the number grows. Every process follows within 5 s.

    **Examples**

    `tailrace rollout set 10`

    `tailrace rollout set 10 --hold 7d --reason "week 1"`
    """
    from tailrace.features.rollout.changing import set_percent, who

    seconds = duration(hold).total_seconds() if hold is not None else None

    async def change(store: RedisRollout) -> Change | None:
        return await set_percent(store, _kind(kind), percent, by=by or who(), reason=reason, hold_seconds=seconds)

    _change(redis, change, as_json=as_json)


@app.command("rollback")
@guarded
def rollback(
    kind: KindOption = "workflow",
    by: ByOption = None,
    reason: ReasonOption = "",
    redis: RedisOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring all streams of a kind back to Pub/Sub, at once.

    **Example**

    `tailrace rollout rollback --reason "viewers see gaps"`
    """
    from tailrace.features.rollout.changing import roll_back, who

    async def change(store: RedisRollout) -> Change | None:
        return await roll_back(store, _kind(kind), by=by or who(), reason=reason)

    _change(redis, change, as_json=as_json)


@app.command("finalize")
@guarded
def finalize(
    kind: KindOption = "workflow",
    by: ByOption = None,
    reason: ReasonOption = "",
    redis: RedisOption = None,
    as_json: JsonOption = False,
) -> None:
    """End the old channels: publishers write to streams only. Needs 100 %.

    Subscribers that were never moved hear nothing from then on.

    **Example**

    `tailrace rollout finalize --reason "no old subscriber is left"`
    """
    from tailrace.features.rollout.changing import finalize, who

    async def change(store: RedisRollout) -> Change | None:
        return await finalize(store, _kind(kind), by=by or who(), reason=reason)

    _change(redis, change, as_json=as_json)


@app.command("rehearse")
@guarded
def rehearse(
    rate: Annotated[float, typer.Option("--rate", min=1, help="Events a second of each of two publishers.")] = 100.0,
    workflows: Annotated[int, typer.Option("--workflows", min=1, help="Of each publisher.")] = 20,
    settle: Annotated[
        str, typer.Option("--settle", metavar="TIME", help="How long processes have to follow, 3s at least.")
    ] = "3s",
    report_file: Annotated[Path | None, typer.Option("--report", help="Keep the report in this file, too.")] = None,
) -> None:
    """Rehearse the whole move on this machine: off, on, compare, 10, 50, 100 %, and back, under load.

    It starts a Redis, a gateway and publishers of its own and touches nothing else. The report goes to stdout; exit
    code 1 when a step was not reached, or an event was lost, doubled or out of order.

    **Example**

    `tailrace rollout rehearse --report rehearsal.md`
    """
    import tempfile

    from tailrace.cli.rehearse.rehearsal import Plan
    from tailrace.cli.rehearse.rehearsal import rehearse as go
    from tailrace.cli.rehearse.report import is_good
    from tailrace.cli.rehearse.report import report as write

    seconds = duration(settle).total_seconds()
    if seconds < 3:
        raise typer.BadParameter("processes ask once a second, so they need 3s at least", param_hint="--settle")
    plan = Plan(rate=rate, workflows=workflows, settle_seconds=seconds)
    with tempfile.TemporaryDirectory(prefix="tailrace-rehearsal-") as folder:
        steps, verdicts = run(go(Path(folder), plan, lambda step: say(f"{step.name}: {step.seen}")))
    text = write(plan, steps, verdicts)
    print(text)
    if report_file is not None:
        report_file.write_text(text)
    raise typer.Exit(0 if is_good(steps, verdicts) else 1)


def _kind(text: str) -> str:
    from tailrace.core.names import StreamName

    return StreamName.parse(f"{text}:x").kind


def _change(redis: str | None, make: Callable[[RedisRollout], Awaitable[Change | None]], *, as_json: bool) -> None:
    import msgspec

    change = run(_make(redis, make))
    if as_json or not on_terminal():
        print(json.dumps({"changed": change is not None, **(msgspec.to_builtins(change) if change else {})}))
    elif change is None:
        say("that is so already")
    else:
        out().print(f"[green]✓[/] {change.kind}: {change.was_percent} % → {_words(change.percent, change.finalized)}")


async def _make(redis: str | None, make: Callable[[RedisRollout], Awaitable[Change | None]]) -> Change | None:
    from tailrace.eventlog.redis.log import RedisLog
    from tailrace.features.rollout.changing import tell_changes

    async with _opened(redis) as (store, kinds):
        change = await make(store)
        if change is None:
            return None
        event_log = RedisLog(store.topology, kinds=kinds, prefix=store.prefix)
        try:
            await tell_changes(store, event_log)
        except LogError as exc:
            say(f"it is set, but not yet in system:rollout; a gateway will see to it: {exc}")
        finally:
            await event_log.aclose()
        return change


@asynccontextmanager
async def _opened(redis: str | None) -> AsyncIterator[tuple[RedisRollout, Kinds]]:
    from tailrace.cli.doctor import embedded_url
    from tailrace.config import load_settings
    from tailrace.eventlog.redis.rollout import RedisRollout

    settings = load_settings()
    url = redis or (settings.redis_url.get_secret_value() if settings.redis_url is not None else None)
    url = url or embedded_url()
    if url is None:
        raise ConfigError("no Redis: give --redis, set TAILRACE_REDIS_URL, or run this beside a `.tailrace`")
    store = RedisRollout(url, prefix=settings.key_prefix)
    try:
        yield store, settings.stream_kinds()
    finally:
        await store.aclose()


async def _status(redis: str | None) -> dict[str, Any]:
    import msgspec

    async with _opened(redis) as (store, _):
        look, notes, changes = await store.look(), await store.notes(), await store.changes()
        has_streams = await store.has_streams()
    kinds: dict[str, Any] = {}
    for kind, rollout in look.rollouts.items():
        guards = None
        if kind in notes:
            guards = msgspec.to_builtins(notes[kind]) | {"age_seconds": round(look.now - notes[kind].at, 1)}
        kinds[kind] = msgspec.to_builtins(rollout) | {"settled": rollout.is_settled(look.now), "guards": guards}
    last = [msgspec.to_builtins(change) for change in changes[-10:]]
    return {"now": look.now, "has_streams": has_streams, "kinds": kinds, "changes": last}


def _words(percent: int, is_finalized: bool) -> str:
    return "finalized: streams only" if is_finalized else f"{percent} %"


def _show(found: dict[str, Any]) -> None:
    from rich.table import Table

    if not found["has_streams"]:
        say("this Redis has no Streams: everything is on Pub/Sub", style="yellow")
    if not found["kinds"]:
        out().print("nothing was ever moved: everything is on Pub/Sub", style="dim")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("kind", "on streams", "since", "by", "guards", "next step"):
        table.add_column(title)
    colours = {"green": "[green]green[/]", "red": "[red]red[/]"}
    for kind, each in found["kinds"].items():
        guards = each["guards"]
        words = "nobody looks" if guards is None else colours.get(guards["health"], guards["health"])
        hold = each["hold_seconds"]
        due = _time(each["since"] + hold) if hold is not None and each["percent"] < 100 else "-"
        table.add_row(kind, _words(each["percent"], each["finalized"]), _time(each["since"]), each["by"], words, due)
    show_table(table)
    for change in found["changes"]:
        reason = f": {change['reason']}" if change["reason"] else ""
        line = f"{_time(change['at'])}  {change['by']}  {change['kind']} {change['action']}"
        out().print(f"{line} {change['was_percent']} → {change['percent']} %{reason}", style="dim", markup=False)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
