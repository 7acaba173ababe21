"""Counters as plain integers, shown on scrape, and the one log line at the end of each request."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import lru_cache

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from triptych_contract import metrics
from triptych_contract.metrics import Kind
from triptych_contract.program.histogram import Histogram
from triptych_router.dispatch.outcome import Journey
from triptych_router.request_log import RequestLine, RequestLog

MAX_SERIES = 4096
"""Label sets of one family; model names come from instances and are few, this bounds them all the same."""
Labels = tuple[str, ...]
Gauges = Callable[[], dict[str, dict[Labels, float]]]
_TABLE = {metric.name.removeprefix("triptych_router_"): metric for metric in metrics.ROUTER}


class Telemetry(Collector):
    """All of the router's metrics, and the line of each request.

    Args:
        gauges: Asked on each scrape.
        lines: Where the lines go; None for none.
    """

    def __init__(self, gauges: Gauges, lines: RequestLog | None = None) -> None:
        self._gauges = gauges
        self._lines = lines
        self._counters: dict[str, dict[Labels, int]] = defaultdict(dict)
        self._histograms: dict[str, dict[Labels, Histogram]] = defaultdict(dict)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)

    def rejected(self, reason: str) -> None:
        """A request was refused before routing."""
        self._count("rejected", (reason,))

    def decided(self, shape: str) -> None:
        """A route was chosen."""
        self._count("decisions", (shape,))

    def attempted(self, stage: str, outcome: str) -> None:
        """An attempt of a leg is over."""
        self._count("attempts", (stage, outcome))

    def retried(self, stage: str, cause: str) -> None:
        """A leg is tried again."""
        self._count("retries", (stage, cause))

    def ended(self, journey: Journey, *, now_s: float, request_id: str, tenant: str, prompt_tokens: int) -> None:
        """A request has its one end: count it and write its line."""
        model, outcome = (journey.model,), journey.outcome.value if journey.outcome is not None else "failed"
        self._count("requests", (journey.model, outcome))
        self._observe("request_seconds", model, now_s - journey.started_s)
        self._observe("queue_seconds", model, journey.queued_s)
        ttft_s = None if journey.first_event_s is None else journey.first_event_s - journey.started_s
        if ttft_s is not None:
            self._observe("time_to_first_token_seconds", model, ttft_s)
        if self._lines is not None:
            line = RequestLine(
                request_id=request_id,
                tenant=tenant_hash(tenant),
                model=journey.model,
                route=journey.route(),
                shape=journey.shape,
                reason=journey.reason,
                attempts={stage.value: tries for stage, tries in journey.attempts.items()},
                prompt_tokens=prompt_tokens,
                tokens=journey.tokens,
                ttft_s=None if ttft_s is None else round(ttft_s, 6),
                queued_s=round(journey.queued_s, 6),
                seconds=round(now_s - journey.started_s, 6),
                outcome=outcome,
                code=journey.code,
            )
            self._lines.add(line)

    def collect(self) -> Iterator[Metric]:
        """All families of the contract's table."""
        gauges = self._gauges()
        for name, metric in _TABLE.items():
            if metric.kind is Kind.COUNTER:
                yield self._counter_family(name, metric)
            elif metric.kind is Kind.HISTOGRAM:
                yield self._histogram_family(name, metric)
            else:
                family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
                for labels, value in gauges.get(name, {}).items():
                    family.add_metric(labels, value)
                yield family

    def _counter_family(self, name: str, metric: metrics.Metric) -> Metric:
        family = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, value in self._counters.get(name, {}).items():
            family.add_metric(labels, value)
        return family

    def _histogram_family(self, name: str, metric: metrics.Metric) -> Metric:
        family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, histogram in self._histograms.get(name, {}).items():
            buckets, total = histogram.render()
            family.add_metric(labels, buckets, sum_value=total)
        return family

    def _count(self, name: str, labels: Labels) -> None:
        family = self._counters[name]
        if labels in family or len(family) < MAX_SERIES:
            family[labels] = family.get(labels, 0) + 1

    def _observe(self, name: str, labels: Labels, value: float) -> None:
        family = self._histograms[name]
        if labels not in family:
            if len(family) >= MAX_SERIES:
                return
            family[labels] = Histogram(_TABLE[name].buckets)
        family[labels].observe(value)


@lru_cache(maxsize=MAX_SERIES)
def tenant_hash(tenant: str) -> str:
    """Tells tenants apart in a log without naming them."""
    return hashlib.sha256(tenant.encode()).hexdigest()[:12] if tenant else ""
