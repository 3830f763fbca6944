"""No matter what bytes a server sends, in whatever cuts: the events and comments of one piece, or TooLarge for both."""

from __future__ import annotations

from tailrace.core.sse import ServerEvent, SseComment, SseParser, encode_event
from tailrace.errors import Malformed, TooLarge

__all__ = ["check"]

LIMIT = 200


def check(data: bytes) -> None:
    """The first byte is the length of the pieces."""
    size, body = (data[0] % 16 + 1, data[1:]) if data else (1, b"")
    whole = parse([body])
    cut = parse([body[at : at + size] for at in range(0, len(body), size)])
    # Over a limit the events before it may have been given or not: by which piece they came.
    assert (whole is None) == (cut is None)
    assert whole is None or whole == cut
    for event in whole or []:
        if isinstance(event, ServerEvent):
            check_written(event)


def parse(pieces: list[bytes]) -> list[ServerEvent | SseComment] | None:
    """What the parser makes of it; None: too large."""
    parser = SseParser(max_event_bytes=LIMIT, comments=True)
    try:
        return [found for piece in pieces for found in parser.feed(piece)]
    except TooLarge:
        return None


def check_written(event: ServerEvent) -> None:
    """What was read can be written, but for an id or a name that may not."""
    try:
        again = SseParser().feed(encode_event(event.data, event=event.event, id=event.id))
    except Malformed:
        assert "\0" in event.id + event.event
        return
    assert again == [event]
