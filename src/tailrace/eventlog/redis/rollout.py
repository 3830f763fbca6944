"""The state of rollouts on Redis (PROTOCOL.md §9.6): every step one script (lua/rollout/), all keys in one slot.

    <prefix>rollout:{rollout}:state     hash: how far each kind has moved; number of the last change
    <prefix>rollout:{rollout}:changes   hash: the last changes
    <prefix>rollout:{rollout}:guards    hash: what the guards said of each kind
    <prefix>rollout:{rollout}:leader    string: the gateway whose guards decide
    <prefix>rollout:reports             Pub/Sub channel: how processes fare with publishing

Rules of this file
1. A change is stored only on top of what its decision was made from; otherwise it is decided again.
2. A full server must not stop a roll-back, nor the one who leads.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import msgspec

from tailrace.core.rollout import Rollout
from tailrace.errors import Conflict, LogUnavailable
from tailrace.eventlog.redis.calls import Calls, load_script
from tailrace.eventlog.redis.connection import ReplyError
from tailrace.eventlog.redis.topology import Topology, open_topology
from tailrace.eventlog.rollout import CHANGES_KEPT, Change, GuardNote, Look, PublishReport

__all__ = ["RedisRollout"]

_LOOK, _CHANGE, _LEAD = (load_script("rollout", name) for name in ("look", "change", "lead"))
TRIES = 10
LATE_SECONDS = 1.0
"""A decision that reached the server later than this is made again, so that all times are the server's."""

_json = msgspec.json.Encoder()


class RedisRollout:
    """All calls may raise `LogUnavailable`.

    Args:
        topology: which server has the state, or its URL.
        prefix: before every key.

    Raises:
        ConfigError: a URL that cannot be used. Nothing is connected yet.
    """

    def __init__(self, topology: Topology | str, *, prefix: str = "tailrace:") -> None:
        self.topology = open_topology(topology) if isinstance(topology, str) else topology
        self.prefix = prefix
        self.name = secrets.token_hex(4)
        """Of this object, among all processes."""
        self.reports = f"{prefix}rollout:reports"
        base = f"{prefix}rollout:{{rollout}}"
        self._state, self._changes = f"{base}:state", f"{base}:changes"
        self._guards, self._leader = f"{base}:guards", f"{base}:leader"
        self._calls = Calls(self.topology, name="tailrace-rollout", what="the store of rollouts")
        self._has_streams: bool | None = None

    async def aclose(self) -> None:
        """Give the connections back."""
        await self._calls.aclose()

    async def look(self) -> Look:
        """What is set now."""
        return (await self._look())[0]

    async def _look(self) -> tuple[Look, dict[str, bytes]]:
        seconds, micros, flat = await self._calls.script(_LOOK, (self._state,))
        fields = {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}
        stored = {name.removeprefix("k:"): value for name, value in fields.items() if name.startswith("k:")}
        rollouts = {name.removeprefix("m:"): Rollout() for name in fields if name.startswith("m:")}
        rollouts |= {kind: msgspec.json.decode(value, type=Rollout) for kind, value in stored.items()}
        version, told = (int(fields.get(name, 0)) for name in ("version", "told"))
        return Look(int(seconds) + int(micros) / 1e6, rollouts, version, told), stored

    async def has_streams(self) -> bool:
        """Whether the server knows Redis Streams."""
        if self._has_streams is None:
            self._has_streams = await self._calls.knows(self._state, "XLEN", f"{self._state}:none")
        return self._has_streams

    async def change(self, action: str, kind: str, decide: Callable[[Rollout, float], Rollout]) -> Change | None:
        """Decide on what is set now, store it and remember the change.

        Args:
            action: what it is called in the record.
            kind: of the streams that move.
            decide: what it was and the time → what it shall be; may raise to refuse. Called again when others
                were quicker.

        Returns:
            The change; None if the decision was to leave all as it is.

        Raises:
            Conflict: others changed it again and again, or what `decide` raised.
        """
        for _ in range(TRIES):
            look, stored = await self._look()
            before = look.rollouts.get(kind, Rollout())
            after = decide(before, look.now)
            if after == before:
                return None
            change = _describe(action, kind, before, after)
            argv = (kind, stored.get(kind, b""), _json.encode(after), _json.encode(change), round(look.now * 1_000))
            limits = (round(LATE_SECONDS * 1_000), CHANGES_KEPT, "1" if action == "rollback" else "0")
            answer = await self._calls.script(_CHANGE, (self._state, self._changes), (*argv, *limits))
            if answer[0] == b"stored":
                return msgspec.structs.replace(change, number=int(answer[1]))
            if answer[0] == b"forced":
                return change
        raise Conflict("others change this rollout at the same time; look, and try again")

    async def changes(self, after: int = 0) -> list[Change]:
        """The remembered changes with a larger number, oldest first."""
        flat = await self._calls.call(self._changes, "HGETALL", self._changes)
        found = {int(number): value for number, value in zip(flat[::2], flat[1::2], strict=True)}
        return [
            msgspec.structs.replace(msgspec.json.decode(found[number], type=Change), number=number)
            for number in sorted(found)
            if number > after
        ]

    async def tell(self, number: int) -> None:
        """Note that all changes up to this one are in the stream."""
        await self._calls.call(self._state, "HSET", self._state, "told", number)

    # -- guards -----------------------------------------------------------------------------------------------------

    async def lead(self, me: str, seconds: float) -> bool:
        """Become the one whose guards decide, or stay it, for so long. False: another is."""
        return bool(await self._calls.script(_LEAD, (self._leader,), (me, round(seconds * 1_000))))

    async def note(self, kind: str, note: GuardNote) -> None:
        """Keep what the guards said, for `tailrace rollout status`."""
        await self._calls.call(self._guards, "HSET", self._guards, kind, _json.encode(note))

    async def notes(self) -> dict[str, GuardNote]:
        """What the guards said of each kind, when they last looked."""
        flat: list[Any] = await self._calls.call(self._guards, "HGETALL", self._guards)
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return {kind.decode(): msgspec.json.decode(value, type=GuardNote) for kind, value in pairs}

    async def report(self, report: PublishReport) -> None:
        """Tell the guards how publishing goes here. A message, not a key: a full server takes it too."""
        await self._calls.call(self._state, "PUBLISH", self.reports, _json.encode(report))

    async def memory(self) -> tuple[int, int]:
        """What the server holds in memory and its limit, in bytes; (0, 0): this login may not ask."""
        try:
            text = await self._calls.call(self._state, "INFO", "memory")
        except LogUnavailable as exc:
            if isinstance(exc.__cause__, ReplyError):
                return 0, 0
            raise
        facts = dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
        return int(facts.get("used_memory", 0)), int(facts.get("maxmemory", 0))


def _describe(action: str, kind: str, before: Rollout, after: Rollout) -> Change:
    return Change(
        action=action,
        kind=kind,
        percent=after.percent,
        was_percent=before.percent,
        finalized=after.finalized,
        by=after.by,
        reason=after.reason,
        at=after.since,
        hold_seconds=after.hold_seconds,
    )
