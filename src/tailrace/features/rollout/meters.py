"""The metrics of rollouts, in the gateway's registry. All gateways count what is reported; who leads compares."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from tailrace.core.comparison import Counts
from tailrace.core.rollout import Health, Readings, Rollout
from tailrace.eventlog.rollout import PublishReport

__all__ = ["Meters"]


class Meters:
    """Labels are kinds of streams and our own words."""

    def __init__(self, registry: CollectorRegistry) -> None:
        kind = ["kind"]
        self.percent = Gauge("tailrace_rollout_percent", "Streams that are on, per cent.", kind, registry=registry)
        self.finalized = Gauge("tailrace_rollout_finalized", "Old channels have ended.", kind, registry=registry)
        self.leader = Gauge("tailrace_rollout_leader", "Whether this gateway's guards decide.", registry=registry)
        self.health = Gauge(
            "tailrace_rollout_guards_red", "Whether the guards say no (this gateway leads).", kind, registry=registry
        )
        self.rollbacks = Counter(
            "tailrace_rollout_rollbacks", "Roll-backs by the guards of this gateway.", kind, registry=registry
        )
        self.published = Counter(
            "tailrace_rollout_published", "Tries to publish to streams, as processes report.", kind, registry=registry
        )
        self.errors = Counter(
            "tailrace_rollout_publish_errors", "Those that failed, as processes report.", kind, registry=registry
        )
        self.fallbacks = Counter(
            "tailrace_rollout_fallbacks", "Times that Pub/Sub stood in for the log.", kind, registry=registry
        )
        self.compared = Counter(
            "tailrace_rollout_compared",
            "Events of the shadow comparison (this gateway leads).",
            ["kind", "result"],
            registry=registry,
        )
        self.mismatch = Gauge(
            "tailrace_rollout_mismatch_ratio", "Events that came on one side only, 60 s.", kind, registry=registry
        )
        self.lag = Gauge(
            "tailrace_rollout_lag_seconds", "How far streams are behind the old channels.", kind, registry=registry
        )
        self.longest = Gauge(
            "tailrace_rollout_longest_stream", "Records of the longest stream compared.", kind, registry=registry
        )
        self.memory = Gauge("tailrace_redis_memory_bytes", "What Redis holds in memory.", registry=registry)
        self.max_memory = Gauge("tailrace_redis_max_memory_bytes", "Its limit; 0: none.", registry=registry)

    def set_rollout(self, kind: str, rollout: Rollout) -> None:
        """How far a kind is, as this gateway knows."""
        self.percent.labels(kind).set(rollout.percent)
        self.finalized.labels(kind).set(rollout.finalized)

    def count_report(self, report: PublishReport) -> None:
        """What a process reported."""
        self.published.labels(report.kind).inc(report.published)
        self.errors.labels(report.kind).inc(report.errors)
        self.fallbacks.labels(report.kind).inc(report.fallbacks)

    def set_guard(self, kind: str, health: Health, readings: Readings) -> None:
        """What the guards said."""
        self.health.labels(kind).set(health is Health.RED)
        self.lag.labels(kind).set(readings.lag_seconds)
        self.mismatch.labels(kind).set(readings.mismatched / readings.compared if readings.compared else 0)

    def forget_guard(self, kind: str) -> None:
        """The guards of this gateway do not look at a kind any more: what they said last is no alarm."""
        for gauge in (self.health, self.lag, self.mismatch, self.longest):
            gauge.labels(kind).set(0)

    def set_leader(self, *, leads: bool) -> None:
        """Whether this gateway leads; one that does not asks nobody about memory."""
        self.leader.set(leads)
        if not leads:
            self.memory.set(0)
            self.max_memory.set(0)

    def count_compared(self, kind: str, counts: Counts) -> None:
        """What the comparison found since the last time."""
        for name in counts.__struct_fields__:
            self.compared.labels(kind, name).inc(getattr(counts, name))
