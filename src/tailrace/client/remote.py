"""A log behind a gateway: requests that may be repeated, and what their refusals mean."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
from msgspec.structs import replace

from tailrace.client.backend import CALL_SECONDS, FollowOptions, PageQuery, checked_event, pause_before
from tailrace.client.credentials import Credentials, Token
from tailrace.client.http import HttpClient, HttpFailure, Response
from tailrace.client.problems import error_of
from tailrace.client.remote_source import RemoteSource
from tailrace.client.wire import PageAnswer, decode_page, encode_events
from tailrace.core.cursor import MAX_STREAMS, Resume
from tailrace.core.event import Event, StreamState
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.errors import (
    CorruptRecord,
    LogUnavailable,
    NotFound,
    OutcomeUnknown,
    TailraceError,
    Unauthorized,
    UsageError,
)
from tailrace.eventlog.base import Appended, StreamInfo

__all__ = ["RemoteLog"]

API = "/api/v1"
ATTEMPT_SECONDS = 8.0
"""One attempt; a black-holed server must not eat the whole deadline of a retried call."""


class _Answer(msgspec.Struct):
    id: str
    duplicate: bool = False


class _Answers(msgspec.Struct):
    events: list[_Answer]


_ANSWERS = msgspec.json.Decoder(_Answers)


class _Receipt(msgspec.Struct, frozen=True):
    stream: StreamName
    events: tuple[Event, ...]
    owner_epoch: int | None = None


class RemoteLog:
    """The `Backend` over HTTP. Every request may be repeated: appends carry uids, the others change nothing twice."""

    batch_events = 250
    """The server remembers the last 1 024 uids of a stream: several batches must fit, or a retry could store twice."""

    def __init__(self, url: str, token: Token | None, *, ssl: Any = None) -> None:
        self.http = HttpClient(url, ssl=ssl)
        if not self.http.base:
            self.http.base = API
        self.credentials = Credentials(token)
        self.call_seconds = CALL_SECONDS
        self._uid_prefix = secrets.token_hex(8)
        self._uid_count = 0

    def _next_uid(self) -> str:
        self._uid_count += 1
        return f"{self._uid_prefix}-{self._uid_count}"

    async def append(
        self, stream: StreamName, events: Sequence[Event], *, seconds: float, owner_epoch: int | None = None
    ) -> list[Appended]:
        """See `Backend`. An event without a uid is given one, so that it can be sent again. Only runs have epochs."""
        named = [
            each if each.uid is not None else replace(each, uid=self._next_uid()) for each in map(checked_event, events)
        ]
        return await self._append(_Receipt(stream, tuple(named), owner_epoch), seconds)

    async def retry(self, receipt: object, *, seconds: float) -> list[Appended]:
        """See `Backend`."""
        if not isinstance(receipt, _Receipt):
            raise UsageError("not a receipt of this client")
        return await self._append(receipt, seconds)

    async def _append(self, receipt: _Receipt, seconds: float) -> list[Appended]:
        events = receipt.events
        try:
            path = _append_path(receipt.stream, receipt.owner_epoch)
            answer = await self.call("POST", path, body=encode_events(events), seconds=seconds)
        except OutcomeUnknown as exc:
            exc.receipt = receipt
            raise
        try:
            answers = _ANSWERS.decode(answer).events
            appended = [Appended(EntryId.parse(each.id), each.duplicate) for each in answers]
        except (ValueError, TailraceError) as exc:
            # A page for people that somebody between shows while the gateway is away.
            raise OutcomeUnknown(f"the answer to a publish is no gateway's: {exc}", receipt=receipt) from exc
        if len(appended) != len(events):
            raise CorruptRecord("the server answered for another number of events")
        return appended

    def follow(
        self, resume: Mapping[StreamName, Resume], options: FollowOptions, give_up_seconds: float | None
    ) -> RemoteSource:
        """See `Backend`."""
        if len(resume) > MAX_STREAMS:
            raise UsageError(f"one connection reads at most {MAX_STREAMS} streams")
        return RemoteSource(self.open_stream, self.info, resume, options, give_up_seconds)

    async def open_stream(self, query: Sequence[tuple[str, str]], last_event_id: str | None) -> Response:
        """Open an SSE response: 200 or 204.

        Raises:
            HttpFailure: no answer. TailraceError: refused.
        """
        path = f"/events/stream?{urlencode(query)}"
        renewed = False
        while True:
            headers = {"accept": "text/event-stream", **await self.credentials.headers()}
            used = self.credentials.current
            if last_event_id is not None:
                headers["last-event-id"] = last_event_id
            async with asyncio.timeout(CALL_SECONDS):
                response = await self.http.stream("GET", path, headers=headers)
                if response.status in (200, 204):
                    return response
                error = error_of(response.status, response.headers, await response.read())
            if not isinstance(error, Unauthorized) or renewed or not self.credentials.renewable:
                raise error
            renewed = True
            await self.credentials.renew(used)

    async def page(self, stream: StreamName, query: PageQuery) -> PageAnswer:
        """See `Backend`."""
        given = {
            "start_id": query.start,
            "end_id": query.end,
            "since_id": query.since,
            "limit": query.limit,
            "order": "desc" if query.reverse else None,
            "types": ",".join(query.types) or None,
        }
        parameters = urlencode([(name, str(value)) for name, value in given.items() if value is not None])
        return decode_page(await self.call("GET", f"/streams/{_path(stream)}/events?{parameters}"))

    async def info(self, stream: StreamName) -> StreamInfo:
        """See `Backend`."""
        body = await self.call("GET", f"/streams/{_path(stream)}")
        try:
            return _info(stream, msgspec.json.decode(body))
        except (ValueError, KeyError, TypeError, TailraceError) as exc:
            raise CorruptRecord(f"the server's description of a stream cannot be read: {exc}") from exc

    async def close(self, stream: StreamName) -> None:
        """See `Backend`."""
        await self.call("POST", f"/streams/{_path(stream)}/close")

    async def delete(self, stream: StreamName) -> bool:
        """See `Backend`."""
        try:
            await self.call("DELETE", f"/streams/{_path(stream)}")
        except NotFound:
            return False
        return True

    async def aclose(self) -> None:
        """See `Backend`."""
        await self.http.aclose()

    async def call(self, method: str, path: str, *, body: bytes = b"", seconds: float | None = None) -> bytes:
        """One request that may be repeated, until it is answered, refused for good, or the time is over.

        Raises: what the answer says; LogUnavailable, OutcomeUnknown: no answer in time.
        """
        end = time.monotonic() + (self.call_seconds if seconds is None else seconds)
        attempt, perhaps, renewed = 0, False, False
        while True:
            error: TailraceError
            try:
                headers = await self.credentials.headers()
                used = self.credentials.current
                status, answered, answer = await self._attempt(method, path, headers, body, end)
                if 200 <= status < 300:
                    return answer
                error = error_of(status, answered, answer)
                perhaps = perhaps or isinstance(error, OutcomeUnknown) or _may_be_done(status, error)
                if isinstance(error, Unauthorized) and self.credentials.renewable and not renewed:
                    renewed = True
                    await self.credentials.renew(used)
                    continue
            except HttpFailure as exc:
                perhaps = perhaps or exc.sent
                error = LogUnavailable(str(exc), retry_after=0.0)
            except LogUnavailable as exc:  # no token for now
                error = exc
            if not error.retryable:
                raise error
            pause = max(getattr(error, "retry_after", 0.0), pause_before(attempt, base=0.1, cap=2.0))
            if time.monotonic() + pause >= end:
                raise _given_up(error, perhaps and method == "POST")
            attempt += 1
            await asyncio.sleep(pause)

    async def _attempt(
        self, method: str, path: str, headers: dict[str, str], body: bytes, end: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        if body:
            headers["content-type"] = "application/json"
        try:
            async with asyncio.timeout(min(ATTEMPT_SECONDS, max(0.05, end - time.monotonic()))):
                response, answer = await self.http.request(method, path, headers=headers, body=body)
        except TimeoutError as exc:
            raise HttpFailure("the server did not answer in time", sent=True) from exc
        return response.status, response.headers, answer


def _may_be_done(status: int, error: TailraceError) -> bool:
    """A proxy answered, not the gateway; after a 503 that did nothing."""
    return status != 503 and isinstance(error, LogUnavailable)


def _given_up(error: TailraceError, perhaps: bool) -> TailraceError:
    if perhaps and not isinstance(error, OutcomeUnknown):
        return OutcomeUnknown(f"perhaps done: {error.detail}", **error.data)
    return error


def _append_path(stream: StreamName, owner_epoch: int | None) -> str:
    if owner_epoch is None:
        return f"/streams/{_path(stream)}/events"
    kind, _, name = stream.partition(":")
    if kind != "run":
        raise UsageError("over HTTP only runs have owners with an epoch")
    return f"/runs/{quote(name, safe='@~')}/events?epoch={owner_epoch}"


def _path(stream: StreamName) -> str:
    return quote(stream, safe=":@~")


def _info(stream: StreamName, answer: dict[str, Any]) -> StreamInfo:
    def id_(name: str) -> EntryId | None:
        return EntryId.parse(answer[name]) if answer.get(name) is not None else None

    ttl = answer.get("ttl_seconds", answer.get("ttl"))
    return StreamInfo(
        stream,
        StreamState(answer["state"]),
        int(answer["length"]),
        id_("first_id"),
        id_("last_id"),
        int(answer.get("incarnation", 0)),
        float(ttl) if ttl is not None else None,
        answer.get("memory_bytes"),
    )
