"""The table of docs/redis-tuning.md, made from what `settings` measured, so that it cannot drift from it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.harness import number

__all__ = ["PAGE", "refreshed", "table"]

PAGE = Path(__file__).parent.parent / "docs" / "redis-tuning.md"
BEGIN = "<!-- made by `python -m bench settings --write` -->\n"
END = "<!-- end -->\n"
COLUMNS = {
    "p50_ms": "append p50, ms",
    "p99_ms": "append p99, ms",
    "per_second": "concurrent, /s",
    "page_ms": "page of 1 000, ms",
    "mib": "10 000 records, MiB",
}


def table(data: Mapping[str, Any]) -> str:
    """What was measured, medians over the rounds."""
    return "".join(f"{line}\n" for line in _lines(data))


def _lines(data: Mapping[str, Any]) -> Iterable[str]:
    machine = data["machine"]
    yield f"| | {' | '.join(COLUMNS.values())} |"
    yield "|---|" + "---:|" * len(COLUMNS)
    for name, rounds in data["rounds"].items():
        cells = [number(statistics.median(sample[key] for sample in rounds)) for key in COLUMNS]
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""
    yield f"Redis {data['setting']['redis']}, {machine['cores']} x {machine['cpu']}, {data['taken']},"
    yield f"load {machine['load'][0]}, commit {machine['commit']}."
    if machine["load"][0] > 2 * machine["cores"]:
        yield "The machine was busy with other things: of this table only the memory counts."


def refreshed(page: str, data: Mapping[str, Any]) -> str:
    """The page with its table made anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table(data)}{END}{after}"
