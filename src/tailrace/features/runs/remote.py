"""Runs over a gateway's routes. Every request may be repeated: ids and producers are named here, endings are once."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from tailrace.client.credentials import Token
from tailrace.client.remote import RemoteLog
from tailrace.errors import LogUnavailable, UsageError
from tailrace.features.runs.backend import Claim, LeaseState
from tailrace.features.runs.model import Run, RunStatus, check_run_id

__all__ = ["HttpRuns", "RunPage"]

T = TypeVar("T")
RENEW_SECONDS = 3.0
"""A renewal is not repeated for longer: the next one is due."""
MAX_LEASES = 1_000
_VERBS = {RunStatus.COMPLETED: "complete", RunStatus.FAILED: "fail", RunStatus.CANCELLED: "cancel"}


class _Renewed(msgspec.Struct):
    runs: dict[str, LeaseState]


class RunPage(msgspec.Struct):
    """One page of a list."""

    runs: list[Run]
    next_cursor: str | None = None


class HttpRuns:
    """See `RunBackend` for what every method promises."""

    def __init__(self, url: str, token: Token | None, *, ssl: Any = None, remote: RemoteLog | None = None) -> None:
        """Args: a gateway's address, a token with a grant to write `run:*`; or a client's own connection to it."""
        self._remote = remote if remote is not None else RemoteLog(url, token, ssl=ssl)
        self._owned = remote is None

    async def create(
        self,
        *,
        kind: str = "run",
        title: str = "",
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> Run:
        """See `RunBackend`."""
        body: dict[str, Any] = {"id": run_id or uuid.uuid4().hex, "kind": kind, "title": title}
        body |= {"metadata": dict(metadata or {})} | ({"owner": owner} if owner is not None else {})
        return await self._ask(Run, "POST", "/runs", body)

    async def begin(self, run_id: str, *, producer: str) -> Claim:
        """See `RunBackend`."""
        return await self._ask(Claim, "POST", _path(run_id, "claim"), {"producer": producer})

    async def renew(self, held: Sequence[tuple[str, int]], *, hold_seconds: float = 0.0) -> Mapping[str, LeaseState]:
        """See `RunBackend`."""
        states: dict[str, LeaseState] = {}
        for at in range(0, len(held), MAX_LEASES):
            runs = [{"id": run_id, "epoch": epoch} for run_id, epoch in held[at : at + MAX_LEASES]]
            body = {"runs": runs} | ({"hold_seconds": hold_seconds} if hold_seconds else {})
            states |= (await self._ask(_Renewed, "POST", "/runs/leases", body, seconds=RENEW_SECONDS)).runs
        return states

    async def finish(
        self,
        run_id: str,
        epoch: int | None,
        status: RunStatus,
        *,
        error: str | None = None,
        result: Any = None,
        seal: bool = True,
        hold_seconds: float = 0.0,
    ) -> Run:
        """See `RunBackend`."""
        if status not in _VERBS:
            raise UsageError("a run ends as completed, failed or cancelled")
        body = {"epoch": epoch, "error": error, "result": result, "seal": seal}
        if hold_seconds:
            body["hold_seconds"] = hold_seconds
        return await self._ask(Run, "POST", _path(run_id, _VERBS[status]), body)

    async def cancel(self, run_id: str) -> Run:
        """Ask a run to end; its producer is told, a queued one is cancelled at once. Raises: RunEnded."""
        return await self._ask(Run, "POST", _path(run_id, "cancel"), {})

    async def get(self, run_id: str) -> Run:
        """See `RunBackend`."""
        return await self._ask(Run, "GET", _path(run_id), None)

    async def find(self, **filters: str | int) -> RunPage:
        """One page of runs, the newest first; the filters are those of `GET /runs`."""
        return await self._ask(RunPage, "GET", f"/runs?{urlencode(filters)}", None)

    async def aclose(self) -> None:
        """See `RunBackend`."""
        if self._owned:
            await self._remote.aclose()

    async def _ask(self, shape: type[T], method: str, path: str, body: Any, *, seconds: float | None = None) -> T:
        sent = msgspec.json.encode(body) if body is not None else b""
        answer = await self._remote.call(method, path, body=sent, seconds=seconds)
        try:
            return msgspec.json.decode(answer, type=shape)
        except msgspec.MsgspecError as exc:
            raise LogUnavailable(f"the server's answer cannot be read: {exc}") from exc


def _path(run_id: str, verb: str = "") -> str:
    return f"/runs/{quote(check_run_id(run_id), safe='@~')}" + (f"/{verb}" if verb else "")
