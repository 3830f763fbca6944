"""Frames that a server writes are read back by an independent parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from tailrace.core.wsframe import text_frame, text_header


def parse(data: bytes) -> list[Frame]:
    """Every frame in the bytes, by the library that clients use."""
    reader = StreamReader()
    reader.feed_data(data)
    frames = []
    while reader.buffer:
        parser = Frame.parse(reader.read_exact, mask=False)
        try:
            while True:
                next(parser)
        except StopIteration as done:
            frames.append(done.value)
    return frames


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_every_length_is_one_whole_unmasked_text_message(size: int) -> None:
    payload = b"x" * size

    frames = parse(text_frame(payload))

    assert [(frame.opcode, frame.data, frame.fin) for frame in frames] == [(Opcode.TEXT, payload, True)]
    assert text_frame(payload).startswith(text_header(size))


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_joined_frames_are_the_single_frames_in_order(payloads: list[bytes]) -> None:
    assert [frame.data for frame in parse(b"".join(map(text_frame, payloads)))] == payloads
