"""Inputs for fuzz targets: bytes, and what the corpus holds with something cut out, put in or said twice."""

from __future__ import annotations

from hypothesis import strategies as st

from fuzz import CORPUS

__all__ = ["corpus", "inputs"]

_PIECES = [
    b"\0",
    b"\n",
    b"\r",
    b'"',
    b"\\u0000",
    b"-1",
    b"1_0",
    b"\xff",
    b"18446744073709551616",
    b"1e400",
    b"[" * 70,
    b"=",
]
pieces = st.one_of(st.sampled_from(_PIECES), st.binary(max_size=8), st.just(b""))


def corpus(target: str) -> list[bytes]:
    """The committed inputs of a target."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


@st.composite
def changed(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 3))):
        begin, end = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        end = draw(st.sampled_from([begin, min(begin + 1, len(data)), end]))
        data = data[:begin] + draw(st.one_of(pieces, st.just(data[begin:end] * 2))) + data[end:]
    return data


def inputs(target: str) -> st.SearchStrategy[bytes]:
    """Mostly near to what is good, since random bytes are refused at the first check."""
    return st.one_of(changed(corpus(target)), changed(corpus(target)), st.binary(max_size=60))
