"""Judges a run: what was attempted, what every reader was given, and what the log holds at the end. O(n).

Rules of this file
1. A reader's `Walk` is fed each delivery once and keeps only its place: a long run needs the memory of its log.
2. What a reader says is compared with the chain (PROTOCOL.md §5), with every other reader, and with the log itself.
3. An attempt is acknowledged (in the log, once), refused (never in the log), or open (perhaps, at most once).
4. Anything wrong is a `Violation` that names the fault of the time, the reader and the place.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any, TextIO

import msgspec

from tailrace.core.event import Gap, Record
from tailrace.core.ids import ZERO, EntryId
from tests.chaos.ledger import judge_lossy

__all__ = [
    "Attempt",
    "Board",
    "Body",
    "Entry",
    "Outcome",
    "Truth",
    "Violation",
    "Walk",
    "judge",
    "parse_id",
    "value_of",
]

log = logging.getLogger("tests.chaos")


class Outcome(StrEnum):
    """What a publisher was told."""

    OPEN = "open"
    ACKED = "acked"
    REFUSED = "refused"


@dataclass(slots=True)
class Attempt:
    """One event that somebody wanted to publish; retries belong to it."""

    writer: str
    stream: str
    value: str
    outcome: Outcome = Outcome.OPEN
    id: EntryId | None = None
    """Where it was said to be. Who emits is told that it is there, and not where."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One record as the log holds it at the end."""

    id: EntryId
    prev: EntryId | None
    value: str


Truth = Mapping[str, Sequence[Entry]]
"""The streams as Redis holds them at the end, each in order."""


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not happen."""

    kind: str
    who: str
    stream: str
    fault: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.who} on {self.stream or '-'} during {self.fault}: {self.detail}"


@dataclass
class Board:
    """What all parts of a run write on: attempts, counts by fault and transport, violations."""

    fault: str = "quiet"
    attempts: list[Attempt] = field(default_factory=list)
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """(fault, transport, measure) → number."""
    violations: list[Violation] = field(default_factory=list)
    seen: dict[str, dict[EntryId, tuple[EntryId | None, str]]] = field(default_factory=lambda: defaultdict(dict))
    """Per stream: what the first reader of an id was given."""

    history: TextIO | None = None
    """Where every operation is written to, as JSON lines."""

    def note(self, what: str, who: str, **facts: object) -> None:
        """Write an operation into the history, if there is one."""
        if self.history is not None:
            told = {name: str(fact) for name, fact in facts.items()}
            line = {"at": round(time.monotonic(), 4), "during": self.fault, "what": what, "who": who, **told}
            self.history.write(json.dumps(line) + "\n")

    def count(self, transport: str, measure: str, number: int = 1) -> None:
        """Add to a cell of the report."""
        self.counts[self.fault, transport, measure] += number

    def complain(self, kind: str, who: str, stream: str, detail: str) -> None:
        """Note a violation."""
        self.note("violation", who, kind=kind, stream=stream, detail=detail)
        self.violations.append(Violation(kind, who, stream, self.fault, detail))
        # At once: a run that is ended by hand must not take what it found with it.
        log.warning("%s", self.violations[-1])

    def attempt(self, writer: str, stream: str, value: str) -> Attempt:
        """Note that an event is about to be published."""
        made = Attempt(writer, stream, value)
        if self.history is not None:
            self.note("publish", writer, stream=stream, value=value)
        self.attempts.append(made)
        return made


class Body(msgspec.Struct):
    """What an event of a run says of itself."""

    v: str = ""
    """Its value, which nothing else has."""
    s: str = ""
    """The stream it was published to."""


_BODY = msgspec.json.Decoder(Body)
parse_id = lru_cache(maxsize=100_000)(EntryId.parse)
"""All readers are given the same ids: parsed once, held once."""


def value_of(data: bytes) -> tuple[str, str]:
    """The value and the stream that an event of a run says itself."""
    body = _BODY.decode(data)
    return body.v, body.s


class Walk:
    """The way of one reader through its streams, over all of its connections."""

    def __init__(self, board: Board, name: str, transport: str, streams: Iterable[str]) -> None:
        self.board = board
        self.name = name
        self.transport = transport
        self.positions: dict[str, EntryId] = dict.fromkeys(streams, ZERO)
        self.deliveries = 0
        self.gaps: list[Gap] = []
        self._told: dict[str, Gap] = {}

    def connected(self) -> None:
        """It has a new connection."""
        self.board.count(self.transport, "connects")
        self.board.note("connected", self.name)

    def placed(self, cursors: Mapping[Any, Any], where: str) -> None:
        """A cursor that the server or the client library gave: it must say exactly how far the reader got."""
        for stream, cursor in cursors.items():
            if isinstance(cursor, EntryId) and stream in self.positions and cursor != self.positions[stream]:
                self._complain("cursor", str(stream), f"{where} says {cursor}, it has up to {self.positions[stream]}")

    def record(self, record: Record) -> None:
        """It was given a record."""
        self.take(str(record.stream), record.id, record.prev, *value_of(record.data))

    def take(self, stream: str, id_: EntryId, prev: EntryId | None, value: str, own: str) -> None:
        """It was given a record of a stream: its id, the one before it, and what its event says itself."""
        board = self.board
        self.deliveries += 1
        board.counts[board.fault, self.transport, "deliveries"] += 1
        if board.history is not None:
            board.note("record", self.name, stream=stream, id=id_, prev=prev, value=value)
        position = self.positions.get(stream)
        if position is None:
            self._complain("foreign stream", stream, f"{id_} was given to somebody who may not have it")
            return
        if own != stream:
            self._complain("crossed", stream, f"{id_} holds an event of {own}")
        given = prev, value
        known = board.seen[stream].setdefault(id_, given)
        if known != given:
            self._complain("disagreement", stream, f"{id_} is {given}, for others {known}")
        gap = self._told.pop(stream, None) if self._told else None
        self.positions[stream] = id_
        if prev == position:
            return
        if gap is not None and (id_ == gap.before or (gap.before is None and gap.cursor == ZERO)):
            return
        kind = "twice or out of order" if id_ <= position else "skipped"
        self._complain(kind, stream, f"{id_} follows {prev}, the reader is at {position}, gap: {gap}")

    def gap(self, gap: Gap) -> None:
        """It was told of a loss."""
        stream = str(gap.stream)
        self.board.count(self.transport, "gaps")
        self.board.note("gap", self.name, gap=gap)
        self.gaps.append(gap)
        if stream not in self.positions:
            self._complain("foreign stream", stream, "a gap was told to somebody who may not have it")
            return
        if gap.after != self.positions[stream]:
            self._complain("gap elsewhere", stream, f"{gap} is told to a reader at {self.positions[stream]}")
        self.positions[stream] = gap.cursor
        self._told[stream] = gap

    def broken(self, detail: str) -> None:
        """Something else than the protocol."""
        self._complain("broken", "", detail)

    def _complain(self, kind: str, stream: str, detail: str) -> None:
        self.board.complain(kind, f"{self.name} ({self.transport})", stream, detail)
        self.board.count(self.transport, "violations")


def judge(
    board: Board, truth: Truth, walks: Iterable[Walk], *, lossy: Collection[str] = frozenset()
) -> list[Violation]:
    """Everything that is wrong with a run whose faults are over and whose readers had time to catch up.

    Args:
        board: what was attempted and seen.
        truth: what the log holds.
        walks: the readers.
        lossy: streams that lose records by design. For them the losses are held against what was told of them.
    """
    found = list(board.violations)
    walks = list(walks)

    def complain(kind: str, who: str, stream: str, detail: str) -> None:
        found.append(Violation(kind, who, stream, "the end", detail))

    for stream, entries in truth.items():
        before = (entries[0].prev or ZERO) if entries and stream in lossy else ZERO
        _judge_log(stream, entries, before, complain, reborn=stream in lossy)
        _judge_agreement(stream, entries, board, complain, lossy=stream in lossy)
        if stream in lossy:
            judge_lossy(stream, entries, board, walks, complain)
    _judge_attempts(board.attempts, truth, lossy, complain)
    for walk in walks:
        _judge_walk(walk, truth, lossy, complain)
    return found


def _judge_log(stream: str, entries: Sequence[Entry], before: EntryId, complain: Any, *, reborn: bool) -> None:
    """The log is a chain from `before` on (or several, one after the other), and each of its events is there once."""
    values = Counter(entry.value for entry in entries)
    for value, times in values.items():
        if times > 1:
            complain("doubled", value, stream, f"is in the log {times} times")
    for entry in entries:
        begins = reborn and entry.prev == ZERO and entry.id.seq == 1 and entry.id > before
        if not begins and (entry.id <= before or entry.prev != before or entry.id.seq != before.seq + 1):
            complain("broken chain", "the log", stream, f"{entry.id} says it follows {entry.prev}, it follows {before}")
        before = entry.id


def _judge_agreement(stream: str, entries: Sequence[Entry], board: Board, complain: Any, *, lossy: bool) -> None:
    """What readers were given is what the log holds; of a lossy stream, from its first record on."""
    held = {entry.id: (entry.prev, entry.value) for entry in entries}
    for id_, given in board.seen.get(stream, {}).items():
        if lossy and (not entries or id_ < entries[0].id):
            continue
        if id_ not in held:
            complain("vanished", given[1], stream, f"{id_} was given to readers and is not in the log")
        elif held[id_] != given:
            complain("disagreement", "the log", stream, f"{id_} is {held[id_]}, for readers {given}")


def _judge_attempts(attempts: Sequence[Attempt], truth: Truth, lossy: Collection[str], complain: Any) -> None:
    """Acknowledged is in the log where it was said to be; refused is not in it; a writer's order is kept."""
    where = {stream: {entry.value: entry.id for entry in entries} for stream, entries in truth.items()}
    known = {(attempt.stream, attempt.value): attempt for attempt in attempts}
    latest: dict[tuple[str, str], EntryId] = {}
    for attempt in attempts:
        id_ = where.get(attempt.stream, {}).get(attempt.value)
        if attempt.outcome is Outcome.REFUSED and id_ is not None:
            complain("aborted read", attempt.writer, attempt.stream, f"{attempt.value} was refused and is at {id_}")
        if attempt.outcome is not Outcome.ACKED:
            continue
        told = attempt.id or id_
        floor = truth[attempt.stream][0].id if truth.get(attempt.stream) else None
        if id_ is None and told is not None and attempt.stream in lossy and (floor is None or told < floor):
            pass  # see ledger.py
        elif id_ is None:
            complain("lost", attempt.writer, attempt.stream, f"{attempt.value} was acknowledged as {told}")
        elif id_ != told:
            complain("moved", attempt.writer, attempt.stream, f"{attempt.value}: told {told}, at {id_}")
        if told is None:
            continue
        lane = (attempt.writer, attempt.stream)
        if told <= latest.get(lane, ZERO):
            complain("writer's order", attempt.writer, attempt.stream, f"{told} is not after {latest[lane]}")
        latest[lane] = told
    for stream, values in where.items():
        for value, id_ in values.items():
            if (stream, value) not in known:
                complain("invented", "the log", stream, f"{value} at {id_} was never published")


def _judge_walk(walk: Walk, truth: Truth, lossy: Collection[str], complain: Any) -> None:
    """A reader ends at the head, and each gap that it was told stands for something that is gone."""
    who = f"{walk.name} ({walk.transport})"
    for stream, position in walk.positions.items():
        entries = truth.get(stream, ())
        head = entries[-1].id if entries else ZERO
        if position != head:
            complain("unseen", who, stream, f"it is at {position}, the log goes on to {head}")
    if walk.gaps:
        held = {stream: {entry.id for entry in entries} for stream, entries in truth.items()}
        for gap in walk.gaps:
            if gap.stream in lossy:
                continue  # see ledger.py
            if gap.after == ZERO or gap.after in held.get(str(gap.stream), ()):
                complain("false gap", who, str(gap.stream), f"{gap}: nothing was lost there")
