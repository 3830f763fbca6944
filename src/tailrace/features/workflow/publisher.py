"""`WorkflowPublisher`: publishes a workflow's messages on its old channel, in its stream, or both.

Rules of this file
1. The stream is the truth: what `publish` returned without an error is in the stream, unless the mode is pubsub.
2. In mode dual the append and the PUBLISH are under way together, on two connections, so that it takes as long as the
   slower of them. A PUBLISH that fails fails nothing: it is counted, told once in the log, and `receivers` is None. An
   append that fails raises, and `error.data["announced"]` says whether the old channel had it.
3. A PUBLISH is sent once. An append is tried until the time is over, and stored once (see `Log`).
4. Messages of one publisher to one workflow keep the order of the calls, on each of the two ways.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from tailrace.client.backend import FollowOptions, PageQuery
from tailrace.client.direct import DirectLog
from tailrace.core.event import Event, Gap, Record
from tailrace.core.frames import raw
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.kinds import Kinds
from tailrace.core.names import StreamName
from tailrace.core.rollout import Mode
from tailrace.errors import ConfigError, LogError
from tailrace.eventlog.features import ServerFeatures, read_features
from tailrace.eventlog.receipt import Receipt
from tailrace.eventlog.redis.log import RedisLog
from tailrace.eventlog.redis.pubsub import Channels
from tailrace.features.workflow import message as messages
from tailrace.features.workflow.ending import let_expire
from tailrace.features.workflow.message import (
    DEFAULT_CHANNEL,
    ENDED_SECONDS,
    ENDS,
    ChannelTemplate,
    Dumps,
    Message,
    stream_of,
)

if TYPE_CHECKING:
    from tailrace.config import Settings

__all__ = ["ENDED_SECONDS", "MAX_LENGTH", "Counts", "Messages", "ModeOf", "Published", "WorkflowPublisher"]

log = logging.getLogger("tailrace.workflow")

ModeOf = Callable[[StreamName], Mode]

MAX_LENGTH = 10_000
"""What `trim_stream` keeps."""
TIMEOUT_SECONDS = 5.0


class Published(msgspec.Struct, frozen=True):
    """What became of a message."""

    mode: Mode
    id: EntryId | None = None
    """Its id in the stream; None: it was not written there."""
    receivers: int | None = None
    """How many heard it on the old channel; None: it was not sent there, or that failed."""


class Messages(msgspec.Struct, frozen=True):
    """A page of a stream, as the application knows its messages."""

    messages: list[dict[str, Any]]
    """Each as it was published, with the member `id`."""
    last_id: str
    """Where to go on: the last message's id, or where the reading began."""
    has_more: bool
    gaps: tuple[Gap, ...] = ()
    """What is missing, and why."""


class Counts(msgspec.Struct):
    """What a publisher did since it was made."""

    appended: int = 0
    append_errors: int = 0
    announced: int = 0
    announce_errors: int = 0


class WorkflowPublisher:
    """Publishes messages of workflows. Belongs to one event loop; use it as a context manager, or call `aclose`.

    Args:
        url: of Redis.
        mode: where messages go, or what says it for each stream.
        streams_enabled: REDIS_STREAM_ENABLED; False wins over `mode`: Pub/Sub only.
        channel: the old channels, with `{id}`.
        dumps: makes the text of a message, as the application always made it.
        key_prefix: of the streams' keys.
        kinds: the policies, where they are not the usual ones.
        timeout_seconds: for one message.

    Raises:
        ConfigError: a URL, prefix or channel that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        mode: Mode | ModeOf = Mode.STREAMS,
        streams_enabled: bool = True,
        channel: str = DEFAULT_CHANNEL,
        dumps: Dumps = json.dumps,
        key_prefix: str = "tailrace:",
        kinds: Kinds | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self.counts = Counts()
        self._template = ChannelTemplate(channel)
        self._dumps = dumps
        self._mode_of: ModeOf = mode if not isinstance(mode, str) else _always(Mode(mode))
        self._enabled = streams_enabled
        self._seconds = timeout_seconds
        self._kinds = kinds if kinds is not None else Kinds()
        self._log = RedisLog.connect(url, prefix=key_prefix, kinds=self._kinds, deadline=timeout_seconds)
        self._direct = DirectLog.on(self._log, self._kinds)
        self._channels = Channels(self._log.topology)
        self._features: ServerFeatures | None = None
        self._asking = asyncio.Lock()
        self._silent = False

    @classmethod
    def of(
        cls, settings: Settings, *, mode: Mode | ModeOf | None = None, dumps: Dumps = json.dumps
    ) -> WorkflowPublisher:
        """A publisher by the settings of a gateway; `mode` wins over `workflow_mode`.

        Raises:
            ConfigError: `redis_url` is not set, or something cannot be used.
        """
        if settings.redis_url is None:
            raise ConfigError("redis_url is not set: say where the log lives")
        if mode is None and settings.workflow_mode == "rollout":
            raise ConfigError("workflow_mode is rollout: give the publisher a rollout's mode_of")
        return cls(
            settings.redis_url.get_secret_value(),
            mode=Mode(settings.workflow_mode) if mode is None else mode,
            streams_enabled=settings.redis_stream_enabled,
            channel=settings.workflow_channel,
            dumps=dumps,
            key_prefix=settings.key_prefix,
            kinds=settings.stream_kinds(),
            timeout_seconds=settings.log_timeout_seconds,
        )

    # -- names --------------------------------------------------------------------------------------------------------

    def stream_key(self, workflow_id: str | int) -> str:
        """The Redis key of a workflow's stream."""
        return self._log.keys.of(stream_of(workflow_id)).events.decode()

    def channel(self, workflow_id: str | int) -> str:
        """The old channel of a workflow."""
        return self._template.channel(str(workflow_id))

    async def mode(self, workflow_id: str | int) -> Mode:
        """Where this workflow's messages go now.

        Raises:
            LogUnavailable: it was never asked whether the server has Streams, and it does not answer.
        """
        return await self._mode(stream_of(workflow_id))

    async def features(self) -> ServerFeatures:
        """What the server can do; asked once.

        Raises:
            LogUnavailable: it does not answer.
        """
        async with self._asking:
            if self._features is None:
                self._features = await read_features(
                    self._log.topology, prefix=self._log.keys.prefix, seconds=self._seconds
                )
                if not self._features.has_streams:
                    log.warning("the server has no Streams: Pub/Sub only", extra={"version": self._features.version})
        return self._features

    # -- publishing ---------------------------------------------------------------------------------------------------

    async def publish_node_output(
        self, workflow_id: str | int, node_id: str, output: Any = None, **fields: Any
    ) -> Published:
        """Publish what a node made. `fields` are further members of the message.

        Raises: as `publish`.
        """
        return await self.publish(workflow_id, messages.node_output(workflow_id, node_id, output, fields))

    async def publish_workflow_complete(self, workflow_id: str | int, result: Any = None, **fields: Any) -> Published:
        """Publish that the workflow is done, and let its stream expire `ENDED_SECONDS` after its last message.

        The stream stays open: a workflow that is started once more goes on in it, and each message gives it that life
        again.

        Raises: as `publish`.
        """
        return await self.publish(workflow_id, messages.complete(workflow_id, result, fields))

    async def publish_workflow_error(self, workflow_id: str | int, error: object, **fields: Any) -> Published:
        """Publish that the workflow failed, and let its stream expire `ENDED_SECONDS` after its last message.

        Raises: as `publish`.
        """
        return await self.publish(workflow_id, messages.error(workflow_id, error, fields))

    async def publish(self, workflow_id: str | int, message: Message) -> Published:
        """Publish a message where the mode says. One whose type is that of an end lets the stream expire, too.

        Cancelled: it may have been published, on either way.

        Raises:
            TooLarge, InvalidStream: it cannot be stored; nothing was sent.
            LogUnavailable: it is not in the stream. OutcomeUnknown: perhaps; `retry(error.receipt)` stores it once.
                `error.data["announced"]`: whether the old channel had it. If so, and it is not in the stream,
                `publish_to_stream` brings it there alone.
        """
        stream, text = stream_of(workflow_id), messages.text_of(message, self._dumps)
        mode = await self._mode(stream)
        if mode is Mode.PUBSUB:
            return Published(mode, None, await self._announce(workflow_id, text))
        event = self._event(stream, text)
        if mode is Mode.STREAMS:
            return Published(mode, await self._append(stream, event))
        receivers, appended = await asyncio.gather(
            self._announce(workflow_id, text), self._append(stream, event), return_exceptions=True
        )
        if isinstance(appended, BaseException):
            if isinstance(appended, LogError):
                appended.data["announced"] = not isinstance(receivers, BaseException)
            raise appended
        if isinstance(receivers, BaseException):
            if not isinstance(receivers, LogError):
                raise receivers
            return Published(mode, appended)
        return Published(mode, appended, receivers)

    async def publish_to_stream(self, workflow_id: str | int, message: Message) -> EntryId:
        """Append a message to the stream, whatever the mode, and return its id.

        Raises: as `publish`.
        """
        stream = stream_of(workflow_id)
        return await self._append(stream, self._event(stream, messages.text_of(message, self._dumps)))

    async def publish_to_channel(self, workflow_id: str | int, message: Message) -> int:
        """Send a message on the old channel, whatever the mode, and return how many heard it.

        Raises:
            LogUnavailable: it was not sent. OutcomeUnknown: perhaps.
        """
        return await self._announce(workflow_id, messages.text_of(message, self._dumps))

    async def retry(self, receipt: object) -> EntryId:
        """Settle an `OutcomeUnknown` of the stream: the message is stored once.

        Raises: as `publish`.
        """
        stored = (await self._direct.retry(receipt, seconds=self._seconds))[0]
        if isinstance(receipt, Receipt) and receipt.events[receipt.offset].type in ENDS:
            await let_expire(self._log, receipt.stream)
        return stored.id

    async def trim_stream(
        self, workflow_id: str | int, *, max_length: int = MAX_LENGTH, expire_seconds: float | None = ENDED_SECONDS
    ) -> int:
        """Keep the newest `max_length` messages, and let the stream expire `expire_seconds` after its last message.

        None: never.

        Returns how many were removed. Readers that still needed them are told a gap.

        Raises:
            LogUnavailable: not done in time.
        """
        stream = stream_of(workflow_id)
        removed = await self._log.trim(stream, max_length=max_length)
        await self._log.expire(stream, expire_seconds, sliding=True)
        return removed

    # -- reading ------------------------------------------------------------------------------------------------------

    async def read_history(
        self,
        workflow_id: str | int,
        *,
        start_id: str | None = None,
        end_id: str | None = None,
        limit: int = 100,
    ) -> Messages:
        """Read a stream's messages from `start_id` to `end_id`, both inclusive, at most `limit`.

        Raises:
            InvalidCursor: not an id. LogUnavailable: no answer in time.
        """
        start = None if start_id is None else EntryId.parse(start_id)
        end = None if end_id is None else EntryId.parse(end_id)
        page = await self._direct.page(stream_of(workflow_id), PageQuery(start=start, end=end, limit=limit))
        return _messages(page.records, page.more, page.gaps, start_id or str(ZERO))

    async def read_new(
        self, workflow_id: str | int, last_id: str = "0-0", *, limit: int = 100, wait_seconds: float = 0.0
    ) -> Messages:
        """Read what came after `last_id`; when there is nothing, wait for it up to `wait_seconds`.

        Raises: as `read_history`.
        """
        stream, since = stream_of(workflow_id), EntryId.parse(last_id)
        query = PageQuery(since=since, limit=limit)
        page = await self._direct.page(stream, query)
        if not page.records and not page.gaps and wait_seconds > 0:
            source = self._direct.follow({stream: since}, FollowOptions(), None)
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_seconds):
                        await source.next()
            finally:
                await source.aclose()
            page = await self._direct.page(stream, query)
        return _messages(page.records, page.more, page.gaps, last_id)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Give the connections back. Appends that were sent are waited for, briefly."""
        await self._direct.aclose()
        await self._channels.aclose()
        await self._log.aclose()

    async def __aenter__(self) -> WorkflowPublisher:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _mode(self, stream: StreamName) -> Mode:
        mode = self._mode_of(stream) if self._enabled else Mode.PUBSUB
        if mode is Mode.PUBSUB:
            return mode
        features = self._features or await self.features()
        return mode if features.has_streams else Mode.PUBSUB

    def _event(self, stream: StreamName, text: bytes) -> Event:
        return messages.event_of(text, max_bytes=self._kinds.of(stream).max_event_bytes)

    async def _append(self, stream: StreamName, event: Event) -> EntryId:
        try:
            appended = await self._direct.append(stream, (event,), seconds=self._seconds)
        except LogError:
            self.counts.append_errors += 1
            raise
        self.counts.appended += 1
        if event.type in ENDS:
            await let_expire(self._log, stream)
        return appended[0].id

    async def _announce(self, workflow_id: str | int, text: bytes) -> int:
        try:
            receivers = await self._channels.publish(self.channel(workflow_id), text, seconds=self._seconds)
        except LogError as exc:
            self.counts.announce_errors += 1
            if not self._silent:
                log.warning("the old channel was not told", extra={"error": str(exc)})
            self._silent = True
            raise
        self._silent = False
        self.counts.announced += 1
        return receivers


def _messages(records: tuple[Record, ...], more: bool, gaps: tuple[Gap, ...], start: str) -> Messages:
    found = [msgspec.json.decode(raw(record)) for record in records]
    return Messages(found, str(records[-1].id) if records else start, more, gaps)


def _always(mode: Mode) -> ModeOf:
    return lambda _: mode
