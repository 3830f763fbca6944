"""A run as Markdown and as JSON: every cell of fault and transport with its counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.chaos.arena import Result

__all__ = ["as_json", "as_markdown", "dump"]

MEASURES = ("deliveries", "connects", "gaps", "violations")

LEGEND = (
    "Each cell: deliveries / connections / gaps / violations, from a fault's begin until everybody was given records "
    "again. Two faults at once count in both rows."
)


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
        "deliveries": sum(number for (_, _, measure), number in counts.items() if measure == "deliveries"),
        "reconnects": sum(number for (_, _, measure), number in counts.items() if measure == "connects"),
        "cells": [
            {"fault": fault, "transport": transport, measure: number}
            for (fault, transport, measure), number in sorted(counts.items())
        ],
        "violations": [str(violation) for violation in result.violations],
    }


def as_markdown(runs: Sequence[tuple[int, Result]]) -> str:
    """A table of all runs together; two faults at once count for both."""
    cells: Counter[tuple[str, str, str]] = Counter()
    for _, result in runs:
        for (label, transport, measure), number in result.board.counts.items():
            for fault in label.split("+"):
                cells[fault, transport, measure] += number
    faults = sorted({fault for fault, _, _ in cells})
    transports = sorted({transport for _, transport, measure in cells if measure in MEASURES})
    totals = [as_json(seed, result) for seed, result in runs]
    lines = [
        "# Chaos report",
        "",
        *(
            f"* seed {each['seed']}: {each['seconds']} s, {len(each['schedule'])} steps, {each['acknowledged']} of "
            f"{each['attempts']} events acknowledged, {each['records']} records, {each['deliveries']} deliveries, "
            f"{each['reconnects']} connections, **{len(each['violations'])} violations**"
            for each in totals
        ),
        "",
        LEGEND,
        "",
        f"| Fault | {' | '.join(transports)} | acknowledged / failed publishes |",
        f"|---|{'---|' * (len(transports) + 1)}",
    ]
    for fault in faults:
        row = [" / ".join(str(cells[fault, each, measure]) for measure in MEASURES) for each in transports]
        row.append(f"{cells[fault, 'publish', 'acknowledged']} / {cells[fault, 'publish', 'failures']}")
        lines.append(f"| {fault} | {' | '.join(row)} |")
    for each in totals:
        lines += ["", f"Schedule of seed {each['seed']}:", "", *(f"1. {step}" for step in each["schedule"])]
        lines += [f"* {line}" for line in each["violations"][:50]]
    return "\n".join(lines) + "\n"


def dump(runs: Sequence[tuple[int, Result]]) -> str:
    """All runs as one JSON text."""
    return json.dumps([as_json(seed, result) for seed, result in runs], indent=1) + "\n"
