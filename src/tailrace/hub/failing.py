"""Streams that cannot be read although the log answers: their readers are told as if it did not.

The tail and the reads have connections of their own, and need other rights: pushes may go well while no page comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from tailrace.core.event import Degraded
from tailrace.core.names import StreamName

if TYPE_CHECKING:
    from tailrace.hub.subscription import Subscription
    from tailrace.hub.topic import Topic

__all__ = ["Failing"]

PATIENCE_SECONDS = 1.0
"""One read that fails is nothing yet: it is tried again at once."""


class Failing:
    """Since when which stream's reads fail."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: dict[StreamName, float] = {}
        self._told = False
        """Whether somebody may have been told."""

    def __contains__(self, stream: StreamName) -> bool:
        since = self._since.get(stream)
        return since is not None and self._clock() - since >= PATIENCE_SECONDS

    def failed(self, stream: StreamName) -> None:
        """A read of it failed."""
        self._since.setdefault(stream, self._clock())

    def succeeded(self, stream: StreamName) -> None:
        """A read of it did not fail."""
        self._since.pop(stream, None)

    def clear(self) -> None:
        """What failed before says nothing any more."""
        self._since.clear()

    def tell(
        self, topics: Mapping[StreamName, Topic], subscriptions: Iterable[Subscription], *, degraded: bool
    ) -> None:
        """Tell the readers whose streams fail, or fail no more; forget streams that nobody tries to read."""
        for stream in list(self._since):
            topic = topics.get(stream)
            if topic is None or (not topic.healing and topic.lanes == len(topic.live)):
                del self._since[stream]
        if not self._since and not self._told:
            return
        self._told = bool(self._since)
        for subscription in tuple(subscriptions):
            subscription.notice(Degraded(active=degraded or subscription.failing))
