"""Blocks: what a sink is given, encoded once for everybody who reads the same thing in the same form."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Protocol

from tailrace.core.compact import compact
from tailrace.core.conflate import conflate
from tailrace.core.event import Ended, Item
from tailrace.core.names import StreamName

__all__ = ["Block", "Cell", "Form", "Sink", "SinkClosed", "SinkStuck"]


class Form(Hashable, Protocol):
    """One wire form. Made once and shared: blocks keep what they encoded by form."""

    def item(self, item: Item) -> bytes:
        """The frame of one item."""

    def join(self, frames: Sequence[bytes]) -> bytes:
        """The frames as they are written, e.g. as one HTTP chunk."""


class Cell:
    """One item and its frames so far."""

    __slots__ = ("_form", "_frame", "_others", "item")

    def __init__(self, item: Item) -> None:
        self.item = item
        # Nearly every item is read in one form only, and a dict of its own would be the larger part of the cell.
        self._form: Form | None = None
        self._frame = b""
        self._others: dict[Form, bytes] | None = None

    def frame(self, form: Form) -> bytes:
        """The item's frame, encoded on first use."""
        if form is self._form:
            return self._frame
        if self._form is None:
            self._form, self._frame = form, form.item(self.item)
            return self._frame
        if self._others is None:
            self._others = {}
        frame = self._others.get(form)
        if frame is None:
            frame = self._others[form] = form.item(self.item)
        return frame


class Block:
    """Items of one stream in their order, shared by all sinks that are given them. Do not change it."""

    __slots__ = ("_bytes", "_encoded", "_form", "cells", "ended", "stream")

    def __init__(self, stream: StreamName | None, cells: Sequence[Cell]) -> None:
        self.stream = stream
        """None: a notice to the whole subscription."""
        self.cells = cells
        last = cells[-1].item if cells else None
        self.ended: Ended | None = last if isinstance(last, Ended) else None
        """The stream's end, which only ever is the last item."""
        self._encoded: dict[Form, bytes] = {}
        self._form: Form | None = None
        self._bytes = b""

    @classmethod
    def of(cls, stream: StreamName | None, items: Iterable[Item]) -> Block:
        """A block of items that were not shared before."""
        return cls(stream, [Cell(item) for item in items])

    @property
    def items(self) -> tuple[Item, ...]:
        """The items, for who wants no bytes."""
        return tuple(cell.item for cell in self.cells)

    def conflated(self) -> Block:
        """The block for a reader that lags and wants only the latest record per key; itself if nothing is left out."""
        kept = {id(item) for item in conflate(self.items)}
        if len(kept) == len(self.cells):
            return self
        return Block(self.stream, [cell for cell in self.cells if id(cell.item) in kept])

    def compacted(self) -> Block:
        """The block for a reader that wants many pieces of text as one record; itself if there are none."""
        items = compact(self.items)
        if len(items) == len(self.cells):
            return self
        shared = {id(cell.item): cell for cell in self.cells}
        return Block(self.stream, [shared.get(id(item)) or Cell(item) for item in items])

    def encode(self, form: Form) -> bytes:
        """The whole block as it is written, encoded on first use."""
        if form is self._form:
            # A thousand readers of one form ask one after the other: hashing it each time would cost half of this.
            return self._bytes
        encoded = self._encoded.get(form)
        if encoded is None:
            encoded = self._encoded[form] = form.join([cell.frame(form) for cell in self.cells])
        self._form, self._bytes = form, encoded
        return encoded


class SinkClosed(Exception):
    """The client is gone."""


class SinkStuck(Exception):
    """The client read nothing for longer than it may."""


class Sink(Protocol):
    """Where a subscription's bytes go. A transport implements it."""

    def write(self, block: Block) -> bool:
        """Take the whole block, or answer False and take nothing: it already buffers as much as its limit.

        Never waits. A sink that buffers nothing takes any block. After False the subscription leaves the live
        set and comes back with the log's pages.
        """

    async def wait_writable(self) -> None:
        """Wait until `write` may be tried again.

        Raises:
            SinkClosed: the client is gone.
            SinkStuck: it took nothing for too long.
        """
