"""A key's slot is the one that redis-py, and so every Cluster, computes."""

from __future__ import annotations

import redis.crc
from hypothesis import example, given
from hypothesis import strategies as st

from tailrace.eventlog.redis.slots import key_slot


@given(st.binary(max_size=40) | st.lists(st.sampled_from([b"{", b"}", b"a", b"bc"]), max_size=8).map(b"".join))
@example(b"tailrace:run:{42}:events")
@example(b"a{}b{c}")
@example(b"{{a}}")
@example(b"")
def test_a_key_is_in_the_slot_that_the_cluster_says(key: bytes) -> None:
    assert key_slot(key) == redis.crc.key_slot(key)
