"""A run as Markdown and as JSON: every cell of fault and transport with its counts, and which are too thin."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.chaos.arena import Result
from tests.chaos.judge import Board
from tests.chaos.load import TRANSPORTS
from tests.chaos.losses import LOSING

__all__ = ["Goal", "as_json", "as_markdown", "cells", "dump"]

MEASURES = ("deliveries", "connects", "gaps", "violations")
SCHEDULE = 60
"""Longer ones are only in the JSON."""

LEGEND = (
    "Each cell: deliveries / connections / gaps / violations, from a fault's begin until everybody was given records "
    "again. Two faults at once count in both rows. A long-poll's connection is one of its client's, not a request."
)


def cells(board: Board) -> Counter[tuple[str, str, str]]:
    """(fault, transport, measure) → number; two faults at once count for both."""
    found: Counter[tuple[str, str, str]] = Counter()
    for (label, transport, measure), number in board.counts.items():
        for fault in label.split("+"):
            found[fault, transport, measure] += number
    return found


@dataclass(frozen=True)
class Goal:
    """How much a run has to have done to count."""

    deliveries: int = 0
    connects: int = 0
    least: int = 10
    """Deliveries in every cell of fault and transport. A fault that loses records must have been told in each."""
    least_connects: int = 0
    """Connections in every such cell."""

    @classmethod
    def of(cls, deliveries: int) -> Goal:
        """What belongs to so many deliveries: a thousandth of connections, a ten-thousandth in each cell."""
        return cls(deliveries, deliveries // 1_000, max(10, deliveries // 10_000), 5 if deliveries >= 1_000_000 else 0)

    def thin(self, board: Board, faults: Sequence[str]) -> list[str]:
        """Cells in which too little happened: what is not tried is not shown."""
        found = cells(board)
        return [
            f"{fault} x {each}: {' / '.join(str(found[fault, each, measure]) for measure in MEASURES)}"
            for fault in faults
            for each in TRANSPORTS
            if found[fault, each, "deliveries"] < self.least
            or found[fault, each, "connects"] < self.least_connects
            or (fault in LOSING and not found[fault, each, "gaps"] + found[fault, each, "ends"])
        ]

    def missing(self, board: Board, faults: Sequence[str]) -> list[str]:
        """Everything that is not reached."""
        found = [
            f"{measure}: {total(board, measure)} of {wanted}"
            for measure, wanted in (("deliveries", self.deliveries), ("connects", self.connects))
            if total(board, measure) < wanted
        ]
        return found + self.thin(board, faults)


def total(board: Board, wanted: str) -> int:
    """A measure over all cells."""
    return sum(number for (_, _, measure), number in board.counts.items() if measure == wanted)


def as_json(seed: int, result: Result) -> dict[str, Any]:
    """Everything that a machine wants to compare."""
    counts = result.board.counts
    return {
        "seed": seed,
        "seconds": round(result.seconds, 1),
        "schedule": result.steps,
        "records": sum(map(len, result.truth.values())),
        "attempts": len(result.board.attempts),
        "acknowledged": sum(attempt.outcome == "acked" for attempt in result.board.attempts),
        "deliveries": total(result.board, "deliveries"),
        "reconnects": total(result.board, "connects"),
        "cells": [
            {"fault": fault, "transport": transport, measure: number}
            for (fault, transport, measure), number in sorted(counts.items())
        ],
        "violations": [str(violation) for violation in result.violations],
    }


def as_markdown(seed: int, result: Result, faults: Sequence[str], *, goal: Goal, command: str = "") -> str:
    """The report of one run."""
    found, told = cells(result.board), as_json(seed, result)
    rows = sorted({fault for fault, _, _ in found})
    transports = sorted({transport for _, transport, measure in found if measure in MEASURES})
    where = f"{os.cpu_count()} shared cores (load average at the end {os.getloadavg()[1]:.1f})"
    done = (
        f"Seed {seed}: {told['seconds']} s, {len(told['schedule'])} steps, {told['acknowledged']} of "
        f"{told['attempts']} events acknowledged, {told['records']} records at the end, **{told['deliveries']} "
        f"deliveries**, {told['reconnects']} connections, **{len(told['violations'])} violations**."
    )
    least = f"At least {goal.least} deliveries and {goal.least_connects} connections in every cell of a fault."
    lines = ["# Chaos report", "", f"`{command}` on {where}, Python {platform.python_version()}.", "", done, "", least]
    lines += [f"* **not reached**: {each}" for each in goal.missing(result.board, faults)]
    lines += ["", LEGEND, "", f"| Fault | {' | '.join(transports)} | acknowledged / failed publishes |"]
    lines += [f"|---|{'---|' * (len(transports) + 1)}"]
    for fault in rows:
        row = [" / ".join(str(found[fault, each, measure]) for measure in MEASURES) for each in transports]
        row.append(f"{found[fault, 'publish', 'acknowledged']} / {found[fault, 'publish', 'failures']}")
        lines.append(f"| {fault} | {' | '.join(row)} |")
    if len(told["schedule"]) <= SCHEDULE:
        lines += ["", "Schedule:", "", *(f"1. {step}" for step in told["schedule"])]
    lines += ["", *(f"* {line}" for line in told["violations"][:50])]
    return "\n".join(lines).rstrip() + "\n"


def dump(seed: int, result: Result) -> str:
    """A run as JSON text."""
    return json.dumps(as_json(seed, result), indent=1) + "\n"
