"""A rehearsal's report, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tailrace.cli.rehearse.ledger import Verdict
from tailrace.cli.rehearse.rehearsal import Plan, Step

__all__ = ["is_good", "report"]


def is_good(steps: Sequence[Step], verdicts: Mapping[str, Verdict]) -> bool:
    """Whether every step was reached and nothing was lost or doubled."""
    return all(step.good for step in steps) and all(verdict.good for verdict in verdicts.values())


def report(plan: Plan, steps: Sequence[Step], verdicts: Mapping[str, Verdict]) -> str:
    """The whole report."""
    load = f"{plan.publishers} publishers, {plan.workflows} workflows and {plan.rate:g} events/s each"
    lines = [
        "# Rehearsal of the move to streams",
        "",
        f"Load all the time: {load}. Redis, gateway and publishers were processes of their own.",
        "",
        "| Step | Seen | Seconds | |",
        "|---|---|---:|---|",
        *(f"| {step.name} | {step.seen} | {step.seconds:.1f} | {_mark(step.good)} |" for step in steps),
        "",
        "| Who | What came of all that was published | |",
        "|---|---|---|",
        *(f"| {who} | {verdict} | {_mark(verdict.good)} |" for who, verdict in verdicts.items()),
        "",
        "**Good.**"
        if is_good(steps, verdicts)
        else "**Not good: do not begin the rollout before this is understood.**",
        "",
    ]
    return "\n".join(lines)


def _mark(good: bool) -> str:
    return "ok" if good else "**failed**"
