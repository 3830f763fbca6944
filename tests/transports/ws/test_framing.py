"""What no proper client sends: each ends its own connection with a code, and nobody else's."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import AsyncIterator

import pytest

from tailrace.codes import CloseCode
from tests.support.ws import Gate, gate, publish
from tests.support.ws_raw import frame, handshake, raw_socket

TEXT, BINARY, CONTINUED, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
COMMAND = b'{"cmd":"ping","id":1}'


@pytest.fixture
async def running() -> AsyncIterator[Gate]:
    async with gate() as made:
        yield made


async def test_a_fragmented_command_is_put_together(running: Gate) -> None:
    async with raw_socket(running) as socket:
        await socket.send(frame(TEXT, COMMAND[:7], fin=False) + frame(CONTINUED, COMMAND[7:9], fin=False))
        await socket.send(frame(PING, b"between") + frame(CONTINUED, COMMAND[9:]))

        assert await socket.next() == (PONG, b"between")
        assert await socket.next() == (TEXT, b'{"reply":1}')


async def test_a_command_byte_by_byte_is_a_command(running: Gate) -> None:
    async with raw_socket(running) as socket:
        for byte in frame(TEXT, COMMAND):
            await socket.send(bytes((byte,)))

        assert await socket.next() == (TEXT, b'{"reply":1}')


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frame(TEXT, COMMAND, masked=False), 1002, id="unmasked"),
        pytest.param(frame(TEXT, COMMAND, rsv=4), 1002, id="RSV1"),
        pytest.param(frame(TEXT, COMMAND, rsv=1), 1002, id="RSV3"),
        pytest.param(frame(3, b""), 1002, id="unknown opcode"),
        pytest.param(frame(11, b""), 1002, id="unknown control opcode"),
        pytest.param(frame(PING, b"x" * 126), 1002, id="control frame of 126 bytes"),
        pytest.param(frame(PING, b"x", fin=False), 1002, id="fragmented control frame"),
        pytest.param(frame(CONTINUED, b"x"), 1002, id="continuation of nothing"),
        pytest.param(frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), 1002, id="new message inside another"),
        pytest.param(frame(TEXT, b"\xff\xfe"), 1007, id="invalid UTF-8"),
        pytest.param(frame(TEXT, b"\xc3", fin=False) + frame(CONTINUED, b"("), 1007, id="invalid UTF-8 over frames"),
        pytest.param(frame(CLOSE, b"\x03"), 1002, id="close frame of one byte"),
        pytest.param(frame(CLOSE, (1005).to_bytes(2, "big")), 1002, id="close code 1005"),
        pytest.param(frame(CLOSE, (999).to_bytes(2, "big")), 1002, id="close code 999"),
        pytest.param(frame(CLOSE, (1000).to_bytes(2, "big") + b"\xff"), 1007, id="close reason not UTF-8"),
        pytest.param(frame(TEXT, b"x" * 65_537), CloseCode.TOO_LARGE, id="oversized"),
        pytest.param(frame(TEXT, b"x" * 1_048_577), CloseCode.TOO_LARGE, id="1 MB and a byte"),
        pytest.param(frame(TEXT, b"x" * 1_048_577)[:14], CloseCode.TOO_LARGE, id="the announcement alone"),
        pytest.param(
            frame(TEXT, b"x" * 60_000, fin=False) + frame(CONTINUED, b"x" * 6_000), CloseCode.TOO_LARGE, id="in sum"
        ),
    ],
)
async def test_broken_framing_ends_the_connection_with_a_code(running: Gate, data: bytes, code: int) -> None:
    async with running.wire() as neighbour, raw_socket(running) as socket:
        await neighbour.ask("subscribe", stream="run:1")

        await socket.send(data)

        assert await socket.close_code() == code
        await publish(running.log, 1)
        assert len(await neighbour.records(1)) == 1


async def test_the_largest_message_passes(running: Gate) -> None:
    padded = json.dumps({"cmd": "ping", "id": 1}).encode().ljust(65_536)
    async with raw_socket(running) as socket:
        await socket.send(frame(TEXT, padded))

        assert await socket.next() == (TEXT, b'{"reply":1}')


@pytest.mark.parametrize("payload", [b"", (1000).to_bytes(2, "big"), (4999).to_bytes(2, "big") + b"bye"])
async def test_a_clients_close_is_answered(running: Gate, payload: bytes) -> None:
    async with raw_socket(running) as socket:
        await socket.send(frame(CLOSE, payload))

        assert (await socket.until(CLOSE))[:2] == (payload[:2] or b"")
        assert await socket.client.rest() == b""


async def test_compression_is_not_offered(running: Gate) -> None:
    async with running.wire(headers={"Sec-WebSocket-Extensions": "permessage-deflate"}) as wire:
        assert not wire.socket.protocol.extensions


async def test_a_message_after_our_close_frame_is_dropped(running: Gate) -> None:
    async with raw_socket(running) as socket:
        await running.gateway.drain(0.0)
        code = int.from_bytes((await socket.until(CLOSE))[:2], "big")

        await socket.send(frame(TEXT, COMMAND) + frame(CLOSE, code.to_bytes(2, "big")))

        assert code == CloseCode.GOING_AWAY
        assert await socket.client.rest() == b""


@pytest.mark.parametrize(
    "change",
    [
        ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8"),
        ("Sec-WebSocket-Key: ", "Sec-WebSocket-Key: short"),
        ("Upgrade: websocket", "Upgrade: h2c"),
    ],
)
async def test_a_broken_handshake_is_refused(running: Gate, change: tuple[str, str]) -> None:
    async with running.server.client() as client:
        await client.send(handshake("/api/v1/ws").replace(change[0].encode(), change[1].encode()))

        head = await client.until(b"\r\n\r\n")
        assert head.split()[1] in (b"400", b"404", b"426")


@pytest.mark.parametrize("seed", range(25))
async def test_random_bytes_end_at_most_their_own_connection(running: Gate, seed: int) -> None:
    dice = random.Random(seed)
    async with running.wire() as neighbour, raw_socket(running) as socket:
        await neighbour.ask("subscribe", stream="run:1")

        with contextlib.suppress(ConnectionError):
            for _ in range(dice.randrange(1, 20)):
                await socket.send(_noise(dice))

        await publish(running.log, 1)
        assert len(await neighbour.records(1)) == 1


def _noise(dice: random.Random) -> bytes:
    """Bytes, frames of bytes, or nearly a command."""
    match dice.randrange(3):
        case 0:
            return dice.randbytes(dice.randrange(1, 200))
        case 1:
            opcode, fin, masked = dice.choice((0, 1, 2, 3, 8, 9, 10, 15)), dice.random() < 0.7, dice.random() < 0.9
            return frame(
                opcode, dice.randbytes(dice.randrange(200)), fin=fin, masked=masked, rsv=dice.choice((0, 0, 2))
            )
        case _:
            text = bytearray(b'{"cmd":"subscribe","id":1,"streams":{"run:7":"0"}}')
            text[dice.randrange(len(text))] = dice.randrange(32, 127)
            return frame(1, bytes(text))
