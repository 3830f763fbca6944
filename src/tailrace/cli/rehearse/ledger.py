"""What was published against what came: each event once, in order, on every way that it was to go.

Rules of this file
1. An event is (workflow, number); a publisher numbers a workflow's events 1, 2, 3, …
2. The publisher's word says which way an event went. A subscriber is right when it has exactly that, in that order.
3. An event whose publishing failed may be there or not; it is neither lost nor too many.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec

from tailrace.core.rollout import Mode

__all__ = ["Ledger", "Sent", "Verdict"]


class Sent(msgspec.Struct, frozen=True):
    """A publisher's line about one event."""

    workflow: str
    number: int
    mode: Mode
    failed: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """What was found of one way."""

    expected: int
    lost: int = 0
    doubled: int = 0
    foreign: int = 0
    """Came, and was not to come."""
    unordered: int = 0

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.doubled or self.foreign or self.unordered)

    def __str__(self) -> str:
        names = ("lost", "doubled", "foreign", "unordered")
        wrong = [f"{getattr(self, name)} {name}" for name in names if getattr(self, name)]
        return f"{self.expected} events, " + (", ".join(wrong) or "each once, in order")


class Ledger:
    """All that publishers said."""

    def __init__(self) -> None:
        self.sent: dict[str, list[Sent]] = defaultdict(list)

    def add(self, sent: Sent) -> None:
        """A publisher said this."""
        self.sent[sent.workflow].append(sent)

    @property
    def count(self) -> int:
        """How many events there were."""
        return sum(len(events) for events in self.sent.values())

    def last_modes(self) -> dict[str, Mode]:
        """Which way each workflow's last event went."""
        return {workflow: events[-1].mode for workflow, events in self.sent.items()}

    def judge_channels(self, seen: Mapping[str, Sequence[int]]) -> Verdict:
        """Hold an old subscriber's numbers against what was sent on the channels."""
        return self._judge(seen, (Mode.PUBSUB, Mode.DUAL))

    def judge_streams(self, seen: Mapping[str, Sequence[int]]) -> Verdict:
        """Hold the numbers in the streams against what was written there."""
        return self._judge(seen, (Mode.DUAL, Mode.STREAMS))

    def judge_viewers(self, seen: Mapping[str, Sequence[int]], workflows: Sequence[str]) -> Verdict:
        """Hold what viewers of some workflows were given against all that was sent there, whichever way."""
        part = Ledger()
        part.sent.update({workflow: self.sent.get(workflow, []) for workflow in workflows})
        return part._judge(seen, tuple(Mode))

    def _judge(self, seen: Mapping[str, Sequence[int]], modes: Sequence[Mode]) -> Verdict:
        expected = lost = doubled = foreign = unordered = 0
        for workflow in {*self.sent, *seen}:
            events = self.sent.get(workflow, [])
            wanted = {each.number for each in events if each.mode in modes and not each.failed}
            perhaps = {each.number for each in events if each.failed}
            came = seen.get(workflow, ())
            expected += len(wanted)
            lost += len(wanted - set(came))
            doubled += len(came) - len(set(came))
            foreign += len(set(came) - wanted - perhaps)
            unordered += sum(later < earlier for earlier, later in pairwise(came))
        return Verdict(expected, lost, doubled, foreign, unordered)
