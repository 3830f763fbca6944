"""A response's head leaves with its body where they come together, and is never kept."""

from __future__ import annotations

import asyncio

from tailrace.transports.joined import JoiningTransport


class Wire(asyncio.Transport):
    """Keeps every write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


def joining() -> tuple[Wire, JoiningTransport]:
    wire = Wire()
    return wire, JoiningTransport(wire, asyncio.get_running_loop())


async def test_a_head_and_the_body_behind_it_are_one_write() -> None:
    wire, transport = joining()

    transport.write(b"head")
    transport.write(b"body")
    transport.write(b"more")
    await asyncio.sleep(0)

    assert wire.writes == [b"headbody", b"more"]


async def test_a_head_without_a_body_leaves_when_the_turn_is_over() -> None:
    wire, transport = joining()

    transport.write(b"head")
    await asyncio.sleep(0)
    transport.write(b"body")

    assert wire.writes == [b"head", b"body"]


async def test_what_was_written_leaves_before_a_close() -> None:
    wire, transport = joining()

    transport.write(b"head")
    transport.close()

    assert wire.writes == [b"head"]
    assert transport.is_closing()


async def test_a_head_is_not_written_to_a_connection_that_was_closed_meanwhile() -> None:
    wire, transport = joining()

    transport.write(b"head")
    wire.close()
    await asyncio.sleep(0)

    assert wire.writes == []
