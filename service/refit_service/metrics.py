"""Counts of what the service did, and their Prometheus text. prometheus-client is imported when somebody asks."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from refit_service.protocol import SeenError

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_KEPT_ERRORS = 20


class Gauges(NamedTuple):
    """What is so at this moment."""

    cache_bytes: int
    cache_entries: int
    workers: int
    queued: int
    leases: int
    bundles: int
    connections: int


class Tally:
    """What happened since the service began. Used by the event loop's thread alone."""

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.failures: Counter[str] = Counter()
        self.phase_seconds: Counter[str] = Counter()
        self.phase_count: Counter[str] = Counter()
        self.errors: deque[SeenError] = deque(maxlen=_KEPT_ERRORS)

    def add_phases(self, seconds: dict[str, float]) -> None:
        """One refit took so long in each phase."""
        for phase, value in seconds.items():
            self.phase_seconds[phase] += value  # type: ignore[assignment]
            self.phase_count[phase] += 1

    def text(self, gauges: Gauges) -> tuple[bytes, str]:
        """The metrics in Prometheus format, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
        from prometheus_client.registry import Collector

        tally = self

        class Ours(Collector):
            def collect(self) -> Iterator[Metric]:
                return tally._collect(gauges)

        registry = CollectorRegistry()
        registry.register(Ours())
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def _collect(self, gauges: Gauges) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

        yield CounterMetricFamily("refit_agent_hits", "Requests answered from the cache.", value=self.hits)
        yield CounterMetricFamily("refit_agent_misses", "Requests that had to wait for an engine.", value=self.misses)
        failures = CounterMetricFamily("refit_agent_failures", "Errors by their code.", labels=["code"])
        for code, count in sorted(self.failures.items()):
            failures.add_metric([code], count)
        yield failures
        phases = SummaryMetricFamily("refit_agent_refit_seconds", "Seconds of a refit by phase.", labels=["phase"])
        for phase, count in sorted(self.phase_count.items()):
            phases.add_metric([phase], count, self.phase_seconds[phase])
        yield phases
        words = {
            "cache_bytes": "Bytes of all engines in the cache.",
            "cache_entries": "Engines in the cache.",
            "workers": "Refit workers alive.",
            "queued": "Engines waiting for their turn.",
            "leases": "Leases held over HTTP.",
            "bundles": "Registered bundles.",
            "connections": "Open connections.",
        }
        for name, value in gauges._asdict().items():
            yield GaugeMetricFamily(f"refit_agent_{name}", words[name], value=value)
