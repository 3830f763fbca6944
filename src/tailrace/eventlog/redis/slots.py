"""Which slot of a Cluster a key is in (Redis Cluster specification, "Key distribution model" and "Hash tags")."""

from __future__ import annotations

from binascii import crc_hqx

__all__ = ["SLOTS", "key_slot"]

SLOTS = 16_384


def key_slot(key: bytes) -> int:
    """CRC16 (XMODEM) of the key's hash tag, what is between the first `{` and the next `}`; of the whole key without.

    redis-py has the same function, but importing it for that alone takes a tenth of a gateway's start.
    """
    begin = key.find(b"{")
    if begin >= 0:
        end = key.find(b"}", begin + 1)
        if end > begin + 1:
            key = key[begin + 1 : end]
    return crc_hqx(key, 0) % SLOTS
