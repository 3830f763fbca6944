"""What requests about runs hold. Members that are not known are refused."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import HTTPConnection, Request

from tailrace.config import Settings
from tailrace.core.codec import minify
from tailrace.errors import Malformed, UnsupportedMedia
from tailrace.features.runs.model import Run, RunStatus, check_kind
from tailrace.features.runs.service import MAX_HOLD_SECONDS
from tailrace.features.runs.store import RunQuery
from tailrace.web.params import integer, one, read_body

__all__ = ["Claiming", "Ending", "NewRun", "Renewing", "cursor_of", "list_query", "read_json", "run_payload"]

T = TypeVar("T", bound=msgspec.Struct)
MAX_BODY_BYTES = 262_144
MAX_MS = 2**53
MAX_PAGE = 200
_CURSOR = re.compile(r"r1\.([0-9]{1,16})\.([A-Za-z0-9][A-Za-z0-9._~@-]{0,199})", re.ASCII)


class NewRun(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`POST /runs`."""

    id: str | None = None
    kind: str = "run"
    title: str = ""
    owner: str | None = None
    metadata: dict[str, Any] = {}


class Ending(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`POST /runs/{id}/complete`, `…/fail` and `…/cancel`."""

    epoch: int | None = None
    error: str | None = None
    result: Any = None
    seal: bool = True
    hold_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Raises: ValueError, which becomes Malformed."""
        _check_hold(self.hold_seconds)


class Claiming(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`POST /runs/{id}/claim`."""

    producer: str

    def __post_init__(self) -> None:
        """Raises: ValueError, which becomes Malformed."""
        if not (1 <= len(self.producer) <= 64 and self.producer.isascii() and self.producer.isprintable()):
            raise ValueError("producer is 1-64 printable ASCII characters")


class _Held(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    id: str
    epoch: int


class Renewing(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`POST /runs/leases`."""

    runs: list[_Held]
    hold_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Raises: ValueError, which becomes Malformed."""
        _check_hold(self.hold_seconds)


async def read_json(request: Request, shape: type[T], settings: Settings) -> T:
    """Read a body; an empty one is an empty object.

    Raises:
        Malformed, TooLarge, UnsupportedMedia, RequestTimeout.
    """
    text = await read_body(request, max_bytes=MAX_BODY_BYTES, seconds=settings.body_timeout_seconds)
    if not text.strip():
        text = b"{}"
    elif request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMedia("send application/json")
    # The same strictness as for events: valid UTF-8, finite numbers, bounded depth.
    checked = minify(text, max_bytes=MAX_BODY_BYTES, max_depth=settings.max_json_depth)
    try:
        return msgspec.json.decode(checked, type=shape)
    except msgspec.ValidationError as exc:
        raise Malformed(str(exc)) from None
    except (ValueError, RecursionError):
        raise Malformed("the body is no JSON") from None


def run_payload(run: Run) -> dict[str, Any]:
    """A run on the wire."""
    return {**msgspec.structs.asdict(run), "stream": run.stream}


def list_query(connection: HTTPConnection, *, owner: str | None) -> RunQuery:
    """Read `GET /runs`' parameters. Raises: Malformed."""
    statuses = [text for value in connection.query_params.getlist("status") for text in value.split(",") if text]
    try:
        wanted = frozenset(RunStatus(text) for text in statuses)
    except ValueError:
        raise Malformed(f"status is one of {', '.join(RunStatus)}", field="status") from None
    kind = one(connection, "kind")
    cursor = one(connection, "cursor")
    match = _CURSOR.fullmatch(cursor) if cursor is not None else None
    if cursor is not None and match is None:
        raise Malformed("cursor is not one that was given out", field="cursor")
    return RunQuery(
        owner=owner,
        kind=check_kind(kind) if kind is not None else None,
        statuses=wanted,
        created_from=_time(connection, "created_from"),
        created_before=_time(connection, "created_before"),
        after=(int(match[1]), match[2]) if match is not None else None,
        limit=integer(connection, "limit", 50, low=1, high=MAX_PAGE),
    )


def cursor_of(run: Run) -> str:
    """Where the page after this run begins."""
    return f"r1.{run.created_at}.{run.id}"


def _check_hold(seconds: float) -> None:
    if not 0 <= seconds <= MAX_HOLD_SECONDS:
        raise ValueError(f"hold_seconds is 0-{MAX_HOLD_SECONDS:.0f}")


def _time(connection: HTTPConnection, name: str) -> int | None:
    if one(connection, name) is None:
        return None
    return integer(connection, name, 0, low=0, high=MAX_MS)
