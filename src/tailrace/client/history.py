"""What `history` answers: records that are there now, by page or one after the other."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from tailrace.client.backend import Backend, PageQuery
from tailrace.client.wire import PageAnswer
from tailrace.core.event import Gap, Record
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName

__all__ = ["History"]

PAGE = 1_000


class History:
    """Records of one stream as they are now. Iterate it for the records, or take `pages`.

    A gap (the beginning was trimmed, the cursor is not part of this history) is given out where it is, before the
    record that follows it.
    """

    def __init__(self, backend: Backend, stream: StreamName, query: PageQuery, limit: int | None) -> None:
        self._backend = backend
        self._stream = stream
        self._query = query
        self._limit = limit

    async def pages(self) -> AsyncIterator[PageAnswer]:
        """The pages, each read when it is asked for.

        Raises:
            NotFound: there is no such stream. LogUnavailable: the log does not answer.
        """
        query, left = self._query, self._limit
        while left is None or left > 0:
            size = PAGE if left is None else min(left, PAGE)
            page = await self._backend.page(self._stream, msgspec.structs.replace(query, limit=size))
            yield page
            if not page.more or page.next_id is None:
                return
            if left is not None:
                left -= len(page.records)
            following = EntryId.parse(page.next_id)
            if query.reverse:
                query = msgspec.structs.replace(query, end=following, since=None)
            else:
                query = msgspec.structs.replace(query, start=following, since=None)

    async def __aiter__(self) -> AsyncIterator[Record | Gap]:
        async for page in self.pages():
            for item in page.items():
                yield item

    async def records(self) -> list[Record]:
        """All of them in a list; give a `limit`."""
        return [item async for item in self if isinstance(item, Record)]
