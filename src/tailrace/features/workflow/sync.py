"""`WorkflowPublisherSync`: the same publisher for code without an event loop, in any thread, also after a fork."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any

from tailrace.client.engine import Engines
from tailrace.core.ids import EntryId
from tailrace.core.kinds import Kinds
from tailrace.core.rollout import Mode
from tailrace.eventlog.features import ServerFeatures
from tailrace.features.workflow.message import DEFAULT_CHANNEL, Dumps, Message
from tailrace.features.workflow.publisher import (
    ENDED_SECONDS,
    MAX_LENGTH,
    TIMEOUT_SECONDS,
    Counts,
    Messages,
    ModeOf,
    Published,
    WorkflowPublisher,
)

__all__ = ["WorkflowPublisherSync"]


class WorkflowPublisherSync:
    """A publisher without `async`. Takes what `WorkflowPublisher` takes; its methods wait."""

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
        self._engines = Engines(
            lambda: WorkflowPublisher(
                url,
                mode=mode,
                streams_enabled=streams_enabled,
                channel=channel,
                dumps=dumps,
                key_prefix=key_prefix,
                kinds=kinds,
                timeout_seconds=timeout_seconds,
            )
        )

    @property
    def counts(self) -> Counts:
        """See `WorkflowPublisher.counts`."""
        return self._engines.running().client.counts

    def stream_key(self, workflow_id: str | int) -> str:
        """See `WorkflowPublisher.stream_key`."""
        return self._engines.running().client.stream_key(workflow_id)

    def channel(self, workflow_id: str | int) -> str:
        """See `WorkflowPublisher.channel`."""
        return self._engines.running().client.channel(workflow_id)

    def mode(self, workflow_id: str | int) -> Mode:
        """See `WorkflowPublisher.mode`."""
        engine = self._engines.running()
        return engine.call(engine.client.mode(workflow_id))

    def features(self) -> ServerFeatures:
        """See `WorkflowPublisher.features`."""
        engine = self._engines.running()
        return engine.call(engine.client.features())

    def publish_node_output(self, workflow_id: str | int, node_id: str, output: Any = None, **fields: Any) -> Published:
        """See `WorkflowPublisher.publish_node_output`."""
        engine = self._engines.running()
        return engine.call(engine.client.publish_node_output(workflow_id, node_id, output, **fields))

    def publish_workflow_complete(self, workflow_id: str | int, result: Any = None, **fields: Any) -> Published:
        """See `WorkflowPublisher.publish_workflow_complete`."""
        engine = self._engines.running()
        return engine.call(engine.client.publish_workflow_complete(workflow_id, result, **fields))

    def publish_workflow_error(self, workflow_id: str | int, error: object, **fields: Any) -> Published:
        """See `WorkflowPublisher.publish_workflow_error`."""
        engine = self._engines.running()
        return engine.call(engine.client.publish_workflow_error(workflow_id, error, **fields))

    def publish(self, workflow_id: str | int, message: Message) -> Published:
        """See `WorkflowPublisher.publish`."""
        engine = self._engines.running()
        return engine.call(engine.client.publish(workflow_id, message))

    def publish_to_stream(self, workflow_id: str | int, message: Message) -> EntryId:
        """See `WorkflowPublisher.publish_to_stream`."""
        engine = self._engines.running()
        return engine.call(engine.client.publish_to_stream(workflow_id, message))

    def publish_to_channel(self, workflow_id: str | int, message: Message) -> int:
        """See `WorkflowPublisher.publish_to_channel`."""
        engine = self._engines.running()
        return engine.call(engine.client.publish_to_channel(workflow_id, message))

    def retry(self, receipt: object) -> EntryId:
        """See `WorkflowPublisher.retry`."""
        engine = self._engines.running()
        return engine.call(engine.client.retry(receipt))

    def trim_stream(
        self, workflow_id: str | int, *, max_length: int = MAX_LENGTH, expire_seconds: float | None = ENDED_SECONDS
    ) -> int:
        """See `WorkflowPublisher.trim_stream`."""
        engine = self._engines.running()
        return engine.call(engine.client.trim_stream(workflow_id, max_length=max_length, expire_seconds=expire_seconds))

    def read_history(
        self, workflow_id: str | int, *, start_id: str | None = None, end_id: str | None = None, limit: int = 100
    ) -> Messages:
        """See `WorkflowPublisher.read_history`."""
        engine = self._engines.running()
        return engine.call(engine.client.read_history(workflow_id, start_id=start_id, end_id=end_id, limit=limit))

    def read_new(
        self, workflow_id: str | int, last_id: str = "0-0", *, limit: int = 100, wait_seconds: float = 0.0
    ) -> Messages:
        """See `WorkflowPublisher.read_new`."""
        engine = self._engines.running()
        return engine.call(engine.client.read_new(workflow_id, last_id, limit=limit, wait_seconds=wait_seconds))

    def close(self) -> None:
        """See `WorkflowPublisher.aclose`."""
        self._engines.close(lambda publisher: publisher.aclose())

    def __enter__(self) -> WorkflowPublisherSync:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
