"""What `subscribe` answers: an iterator of records, gaps and ends, with the cursor of what was given out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType

from tailrace.client.backend import Source
from tailrace.core.cursor import MAX_STREAMS, CursorToken, Resume
from tailrace.core.event import Degraded, Item
from tailrace.core.frames import position_of
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.errors import AlreadyClosed, UsageError

__all__ = ["Subscription"]


class Subscription:
    """Records of one or more streams, live, each stream's in order and once, or a `Gap` that says what is missing.

    Iterate it, from one task at a time. It ends when every stream has ended. It reconnects by itself and goes on where
    it was. A cancelled wait loses nothing: iterate on. Leave it with `aclose` or as a context manager.
    """

    def __init__(
        self, source: Source, resume: Mapping[StreamName, Resume], *, notices: bool, on_close: Callable[[], None]
    ) -> None:
        self._source = source
        self._resume = dict(resume)
        self._cursors: dict[StreamName, EntryId] = {s: r for s, r in resume.items() if isinstance(r, EntryId)}
        self._notices = notices
        self._on_close = on_close
        self._closed = False
        self._ended = False

    @property
    def cursor(self) -> str | None:
        """Where to go on (`since=`) after the last item that was given out; None: nothing was given out yet.

        Raises:
            UsageError: more than 32 streams; keep `cursors` instead.
        """
        if not self._cursors:
            return None
        if len(self._resume) > MAX_STREAMS:
            raise UsageError(f"one cursor holds at most {MAX_STREAMS} streams; use `cursors`")
        if len(self._resume) == 1:
            return str(next(iter(self._cursors.values())))
        token = CursorToken(self._resume)
        for stream, cursor in self._cursors.items():
            token.move(stream, cursor)
        return str(token)

    @property
    def cursors(self) -> dict[StreamName, EntryId]:
        """The same per stream; a stream of which nothing was given out is not in it."""
        return dict(self._cursors)

    @property
    def streams(self) -> tuple[StreamName, ...]:
        """What is read."""
        return tuple(self._resume)

    @property
    def give_up_seconds(self) -> float | None:
        """How long to go without a connection before `LogUnavailable` is raised; None: for ever."""
        return self._source.give_up_seconds

    @give_up_seconds.setter
    def give_up_seconds(self, seconds: float | None) -> None:
        self._source.give_up_seconds = seconds

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Item:
        """Wait for the next item.

        Raises:
            Unauthorized, Forbidden, NotFound: the server refuses for good.
            LogUnavailable: no connection for `give_up_seconds`.
        """
        if self._ended:
            raise StopAsyncIteration
        if self._closed:
            raise AlreadyClosed("the subscription was closed")
        while True:
            item = await self._source.next()
            if item is None:
                self._ended = True
                await self.aclose()
                raise StopAsyncIteration
            if isinstance(item, Degraded):
                if self._notices:
                    return item
                continue
            position = position_of(item)
            if position is not None:
                self._cursors[item.stream] = position
            return item

    async def aclose(self) -> None:
        """Stop reading. Closing twice is the same as once."""
        if not self._closed:
            self._closed = True
            await self._source.aclose()
            self._on_close()

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
