"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeAlias

import typer

__all__ = ["TokenOption", "UrlOption", "duration", "instant"]

UrlOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--url", metavar="URL", help="Server (http://…), or its Redis (redis://…). Else TAILRACE_URL, else `.tailrace`."
    ),
]
TokenOption: TypeAlias = Annotated[
    str | None, typer.Option("--token", metavar="JWT", help="Else TAILRACE_TOKEN, else the token in `.tailrace`.")
]

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])", re.ASCII)


def duration(text: str) -> timedelta:
    """Read `90s`, `10m`, `2h`, `7d`, `1h30m`.

    Raises:
        typer.BadParameter: not a duration.
    """
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise typer.BadParameter(f"{text!r} is not a duration such as 90s, 10m, 2h or 7d")
    return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))


def instant(text: str) -> str | datetime:
    """Read where to begin: a duration ago, a date or time, or a cursor, which is returned as it is."""
    if _DURATION.match(text):
        try:
            return datetime.now(UTC) - duration(text)
        except typer.BadParameter:
            pass
    if re.match(r"\d{4}-\d\d-\d\d", text):
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a time such as 2025-01-31T12:00") from None
        return when if when.tzinfo is not None else when.astimezone()
    return text
