"""Who takes part in a run: publishers and readers of every kind, and some who ask for more than they may have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tailrace.client.client import Tailrace
from tests.chaos.emitting import EmitWriter
from tests.chaos.judge import Walk
from tests.chaos.load import PREFIX, SECRET_STREAM
from tests.chaos.readers import ClientReader, PollReader, Reader, SocketReader, SourceReader
from tests.chaos.writers import HttpWriter, KilledWriter, LogWriter, kinds
from tests.e2e.harness import token

if TYPE_CHECKING:
    from tests.chaos.arena import Arena

__all__ = ["Intruder", "invite"]


class Intruder(Walk):
    """Who is given something else than its own stream is told apart; how far it gets does not matter."""


def invite(arena: Arena) -> None:
    """Make the writers and readers."""
    bearer, app, streams = arena.bearer, arena.app, arena.load.streams
    for index, stream in enumerate(streams):
        others = [stream, streams[(index + 1) % len(streams)]]
        _write(arena, index, others, app, bearer)
    for index, stream in enumerate(set(arena.load.lossy) - set(streams), len(streams)):
        _write(arena, index, [stream], app, bearer)
    _emitters(arena, app, bearer)
    secret = HttpWriter(arena.board, "secret", [SECRET_STREAM], url=arena.edge_url, token=bearer)
    arena.writers.append(secret)
    urls = ",".join(edge.http_url for edge in arena.edges)
    if arena.load.killed:
        arena.killed = [
            KilledWriter(arena.board, "dying-http", "run:a", target=("http", bearer, urls), repeats=True),
            KilledWriter(arena.board, "dying-log", "run:b", target=("log", PREFIX, app), repeats=False),
        ]
    arena.writers += arena.killed
    for writer in arena.writers:
        seldom = 5 if arena.load.batch > 1 and not isinstance(writer, LogWriter) else 1
        if writer is secret:
            seldom *= arena.load.seldom
        writer.pause = writer.usual_pause = arena.load.pause * seldom
    for index in range(arena.load.sets):
        _readers(arena, f"{index}", streams[index % len(streams) :][:1], streams[: 2 + index % 2], app)
    for index in range(arena.load.sets, arena.load.sets + arena.load.more):
        _reader(arena, SourceReader, "sse", streams[index % len(streams) :][:1], f"{index}")
        _reader(arena, SourceReader, "sse-many", streams, f"{index}")
        if index % 4 == 0:
            _reader(arena, PollReader, "poll-many", streams, f"{index}")
    for stream in set(arena.load.lossy) - set(streams):
        _readers(arena, f"-{stream}", [stream], [stream, streams[0]], app)
    _intruders(arena)
    for reader in arena.readers:
        if isinstance(reader, PollReader):
            reader.rest = arena.load.rest


def _write(arena: Arena, index: int, streams: list[str], app: str, bearer: str) -> None:
    http = HttpWriter(arena.board, f"http{index}", streams, url=arena.edge_url, token=bearer, named=arena.named)
    log = LogWriter(arena.board, f"log{index}", streams, url=app, key_prefix=PREFIX, lengths=arena.load.lengths)
    http.batch = http.usual_batch = max(1, arena.load.batch // 5)
    log.batch = log.usual_batch = arena.load.batch
    arena.writers += [http, log]


def _emitters(arena: Arena, app: str, bearer: str) -> None:
    """Through a gateway with a spool on disk, and straight on Redis with one in memory."""
    edge, folder = arena.edges[0].http_url, arena.folder / "spool"
    known = kinds(arena.load.lengths)
    ways: tuple[tuple[str, Callable[[], Tailrace], bool], ...] = (
        ("emit-http", lambda: Tailrace(edge, token=bearer, spool=folder), True),
        ("emit-log", lambda: Tailrace(app, key_prefix=PREFIX, kinds=known), False),
    )
    streams = [stream for stream in arena.load.streams if stream not in arena.load.lossy]
    for name, make, keeps in ways if streams else ():
        writer = EmitWriter(arena.board, name, streams, make=make, keeps=keeps)
        writer.batch = writer.usual_batch = max(1, arena.load.batch // 5)
        arena.writers.append(writer)


def _readers(arena: Arena, suffix: str, one: Sequence[str], many: Sequence[str], app: str) -> None:
    _reader(arena, SourceReader, "sse", one, suffix)
    _reader(arena, SourceReader, "sse-many", many, suffix)
    _reader(arena, SocketReader, "ws", one, suffix)
    _reader(arena, _commands, "ws-many", many, suffix)
    _reader(arena, PollReader, "poll", one, suffix)
    _reader(arena, PollReader, "poll-many", many, suffix)
    _reader(arena, ClientReader, "client-http", many, suffix)
    walk = Walk(arena.board, f"client-redis{suffix}", "client-redis", many)
    arena.readers.append(ClientReader(lambda: app, walk, "", key_prefix=PREFIX, ends=arena.load.lossy))


def _reader(arena: Arena, make: Callable[..., Reader], transport: str, streams: Sequence[str], suffix: str) -> None:
    name = f"{transport}{suffix}"
    walk = Walk(arena.board, name, transport, streams)
    arena.readers.append(
        make(arena.url, walk, token(name.replace(":", "-"), read=list(streams)), ends=arena.load.lossy)
    )


def _intruders(arena: Arena) -> None:
    """They ask for more than they may read."""
    stream = arena.load.streams[0]
    for transport, make in (("sse-many", SourceReader), ("ws-many", _commands), ("poll-many", PollReader)):
        intruder = Intruder(arena.board, f"intruder-{transport}", transport, (stream,))
        reader = make(arena.url, intruder, token(intruder.name, read=[stream]), asked=(stream, SECRET_STREAM))
        reader.stays = False
        arena.readers.append(reader)


def _commands(*args: object, **options: object) -> SocketReader:
    return SocketReader(*args, commands=True, **options)  # type: ignore[arg-type]
