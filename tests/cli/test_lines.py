"""Bytes to pieces: nothing is lost, whatever the cuts."""

from __future__ import annotations

import itertools
from base64 import b64decode

from hypothesis import given
from hypothesis import strategies as st

from tailrace.cli.run.lines import LineSplitter, Piece


def rejoin(pieces: list[Piece]) -> bytes:
    return b"".join(piece.content + (b"" if piece.partial else b"\n") for piece in pieces)


@given(
    chunks=st.lists(st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode), st.just(b"\n"))),
    limit=st.integers(4, 24),
    flushes=st.integers(0, 3),
)
def test_the_pieces_joined_are_the_bytes(chunks: list[bytes], limit: int, flushes: int) -> None:
    splitter = LineSplitter(limit=limit)
    pieces: list[Piece] = []
    for index, chunk in enumerate(chunks):
        pieces += splitter.feed(chunk)
        if flushes and index % flushes == 0:
            pieces += splitter.flush()
    pieces += splitter.close()

    assert rejoin(pieces) == b"".join(chunks)
    assert all(len(piece.content) <= max(limit, 3) for piece in pieces)


@given(text=st.text(max_size=200), cuts=st.lists(st.integers(0, 800)), limit=st.integers(4, 24))
def test_text_stays_text_whatever_the_cuts(text: str, cuts: list[int], limit: int) -> None:
    data = text.encode()
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    splitter = LineSplitter(limit=limit)
    pieces: list[Piece] = []
    for begin, end in itertools.pairwise(places):
        pieces += splitter.feed(data[begin:end])
        pieces += splitter.flush()
    pieces += splitter.close()

    assert all("encoding" not in piece.data("stdout", 0) for piece in pieces)


def test_a_line_that_is_not_ended_is_partial_and_so_is_what_is_split_off() -> None:
    splitter = LineSplitter(limit=4)

    assert splitter.feed(b"abcdefghi\nxy") == [
        Piece(b"abcd", partial=True),
        Piece(b"efgh", partial=True),
        Piece(b"i"),
    ]
    assert splitter.waiting
    assert splitter.flush() == [Piece(b"xy", partial=True)]
    assert not splitter.waiting
    assert splitter.feed(b"z\n") == [Piece(b"z")]
    assert splitter.close() == []


def test_an_unfinished_character_waits_for_its_rest_until_the_end() -> None:
    splitter = LineSplitter()

    splitter.feed("a€".encode()[:-1])
    assert splitter.flush() == [Piece(b"a", partial=True)]
    assert splitter.flush() == []
    assert splitter.feed("€".encode()[-1:] + b"\n") == [Piece("€".encode())]

    splitter.feed("€".encode()[:-1])
    assert splitter.close() == [Piece("€".encode()[:-1], partial=True)]


def test_binary_output_is_base64_and_says_so() -> None:
    data = Piece(b"\xff\x00\xfe").data("stderr", 7)

    assert data == {"stream": "stderr", "at": 7, "text": "/wD+", "encoding": "base64"}
    assert b64decode(data["text"]) == b"\xff\x00\xfe"


def test_a_terminals_line_ends_lose_their_carriage_return_and_a_pipes_do_not() -> None:
    assert LineSplitter(terminal=True).feed(b"a\r\n\r\nb\rc\r\n") == [Piece(b"a"), Piece(b""), Piece(b"b\rc")]
    assert LineSplitter().feed(b"a\r\n") == [Piece(b"a\r")]
