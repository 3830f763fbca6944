"""What Redis itself holds at the end."""

from __future__ import annotations

from collections.abc import Sequence

from tests.chaos.judge import Entry, Truth, parse_id, value_of
from tests.chaos.load import key_of
from tests.support.redis_servers import RedisServer

__all__ = ["read_truth"]


async def read_truth(redis: RedisServer, streams: Sequence[str]) -> Truth:
    """What Redis itself holds."""
    truth: dict[str, list[Entry]] = {}
    for stream in streams:
        entries, at = [], "-"
        while page := await redis.cli("XRANGE", f"{key_of(stream)}:events", at, "+", "COUNT", "5000"):
            entries += page
            at = f"({page[-1][0]}"
        truth[stream] = [_entry(id_, fields) for id_, fields in entries]
    return truth


def _entry(id_: str, fields: list[str]) -> Entry:
    pairs = dict(zip(fields[::2], fields[1::2], strict=True))
    return Entry(parse_id(id_), parse_id(pairs["prev"]), value_of(pairs["data"].encode())[0])
