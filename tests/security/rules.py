"""What every route asks for, and how it is asked. A new route needs a line here."""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

__all__ = ["ID", "RULES", "Ask", "Rule"]


class Rule(Enum):
    """What a route asks for."""

    PUBLIC = "nothing"
    KNOWN = "a good token"
    OTHERS = "an admin: it ends somebody else's tokens"
    READ, WRITE, CLOSE, DELETE = "read", "write", "close", "delete"
    CANCEL = "the run's owner, or who may close its stream"
    MAKE = "who may write the run that is to be, for themselves"
    READ_ALL = "who may read every run, or the owner of those that are asked for"
    WRITE_ALL = "who may write every run"


class Ask(NamedTuple):
    """One way to ask a route."""

    rule: Rule
    body: Any = None
    query: str | None = None


ID = "THE ID"
"""In a body the run's, and in a query its owner's name."""
RULES: dict[tuple[str, str], list[Ask]] = {
    ("GET", "/openapi.json"): [Ask(Rule.PUBLIC)],
    ("HEAD", "/openapi.json"): [Ask(Rule.PUBLIC)],
    ("GET", "/healthz"): [Ask(Rule.PUBLIC)],
    ("GET", "/readyz"): [Ask(Rule.PUBLIC)],
    ("HEAD", "/healthz"): [Ask(Rule.PUBLIC)],
    ("HEAD", "/readyz"): [Ask(Rule.PUBLIC)],
    ("GET", "/metrics"): [Ask(Rule.PUBLIC)],
    ("GET", "/events/health"): [Ask(Rule.PUBLIC)],
    ("GET", "/events/stream"): [Ask(Rule.READ)],
    ("HEAD", "/events/stream"): [Ask(Rule.READ)],
    ("GET", "/streams/{stream}/events/stream"): [Ask(Rule.READ)],
    ("HEAD", "/streams/{stream}/events/stream"): [Ask(Rule.READ)],
    ("GET", "/events/history"): [Ask(Rule.READ)],
    ("GET", "/events/poll"): [Ask(Rule.READ)],
    ("GET", "/streams/{stream}/events"): [Ask(Rule.READ)],
    ("GET", "/streams/{stream}"): [Ask(Rule.READ)],
    ("WS", "/streams/{stream}/ws"): [Ask(Rule.READ)],
    ("WS", "/ws"): [Ask(Rule.KNOWN)],
    ("POST", "/streams/{stream}/events"): [Ask(Rule.WRITE, {"type": "n"})],
    ("POST", "/streams/{stream}/close"): [Ask(Rule.CLOSE)],
    ("DELETE", "/streams/{stream}"): [Ask(Rule.DELETE)],
    ("POST", "/auth/sse-token"): [Ask(Rule.KNOWN)],
    ("POST", "/auth/revoke"): [Ask(Rule.OTHERS, {"jti": "nobody-has-it"})],
    ("POST", "/runs"): [
        Ask(Rule.MAKE, {"id": ID}),
        Ask(Rule.WRITE_ALL, {"id": ID, "owner": "carol"}),
        Ask(Rule.WRITE_ALL, {"kind": "test"}),
    ],
    ("GET", "/runs"): [Ask(Rule.KNOWN, query=""), Ask(Rule.READ_ALL, query=f"?owner={ID}")],
    ("POST", "/runs/leases"): [Ask(Rule.WRITE, {"runs": [{"id": ID, "epoch": 1}]})],
    ("GET", "/runs/{run_id}"): [Ask(Rule.READ)],
    ("POST", "/runs/{run_id}/claim"): [Ask(Rule.WRITE, {"producer": "p"})],
    ("POST", "/runs/{run_id}/complete"): [Ask(Rule.WRITE), Ask(Rule.WRITE, {"epoch": 0})],
    ("POST", "/runs/{run_id}/fail"): [Ask(Rule.WRITE, {"error": "e"})],
    ("POST", "/runs/{run_id}/cancel"): [Ask(Rule.CANCEL), Ask(Rule.WRITE, {"epoch": 0})],
    ("GET", "/runs/{run_id}/events"): [Ask(Rule.READ)],
    ("POST", "/runs/{run_id}/events"): [Ask(Rule.WRITE, {"type": "n"})],
    ("GET", "/runs/{run_id}/events/stream"): [Ask(Rule.READ)],
    ("HEAD", "/runs/{run_id}/events/stream"): [Ask(Rule.READ)],
    ("WS", "/runs/{run_id}/ws"): [Ask(Rule.READ)],
}
