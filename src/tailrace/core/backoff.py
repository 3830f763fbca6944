"""How long to wait before the next try."""

from __future__ import annotations

__all__ = ["full_jitter"]

_MAX_DOUBLINGS = 62


def full_jitter(
    attempt: int, unit: float, *, base_seconds: float = 0.5, cap_seconds: float = 30.0, retry_after: float = 0.0
) -> float:
    """The delay before try `attempt` (0 is the first repetition), spread over the whole range so that many clients
    that failed together do not come back together.

    Args:
        attempt: how many repetitions there were.
        unit: a random number, 0 <= unit < 1.
        base_seconds: range of the first delay; it doubles with each attempt.
        cap_seconds: the largest range.
        retry_after: what the other side asked for; the spread comes on top of it.
    """
    doubled: float = base_seconds * 2 ** min(max(attempt, 0), _MAX_DOUBLINGS)
    return retry_after + unit * min(cap_seconds, doubled)
