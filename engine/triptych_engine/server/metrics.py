"""Metrics under vLLM's names: plain numbers on the hot path, rendered only when somebody scrapes."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from triptych_contract.instance import HandoverCounts, LoadSample
from triptych_contract.metrics import ENGINE, Kind, Metric
from triptych_contract.program.histogram import Histogram
from triptych_engine.messages import CoreStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Samples = Mapping[str, Iterable[tuple[tuple[str, ...], float]]]
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class EngineMetrics:
    """What the server counts itself."""

    def __init__(self) -> None:
        self.histograms = {m.name: Histogram(m.buckets) for m in ENGINE if m.kind is Kind.HISTOGRAM}
        self.finished: dict[str, int] = {"stop": 0, "length": 0, "abort": 0, "error": 0}

    def observe(self, name: str, value: float) -> None:
        """Count a value in the histogram of that name."""
        self.histograms[name].observe(value)

    def finish(self, reason: str) -> None:
        """Count a finished choice."""
        self.finished[reason] = self.finished.get(reason, 0) + 1


def engine_samples(
    stats: CoreStats,
    load: LoadSample,
    handover: HandoverCounts,
    *,
    role: str,
    epoch: int,
    block_tokens: int,
    finished: Mapping[str, int],
    failures: Mapping[str, int],
    tasks: int,
) -> Samples:
    """Values of gauges and counters by metric name: labels beyond model and engine, then the value."""
    blocks = stats.blocks
    used = blocks.held + blocks.in_transfer
    return {
        "vllm:num_requests_running": [((), load.running)],
        "vllm:num_requests_waiting": [((), load.waiting)],
        "vllm:kv_cache_usage_perc": [((), used / blocks.total if blocks.total else 0.0)],
        "vllm:cache_config_info": [((str(block_tokens), str(blocks.total)), 1)],
        "vllm:prompt_tokens": [((), stats.prompt_tokens)],
        "vllm:generation_tokens": [((), stats.generation_tokens)],
        "vllm:prefix_cache_queries": [((), stats.prefix_queries)],
        "vllm:prefix_cache_hits": [((), stats.prefix_hits)],
        "vllm:num_preemptions": [((), stats.preemptions)],
        "vllm:request_success": [((reason,), count) for reason, count in finished.items()],
        "triptych_engine_blocks": [
            (("free",), blocks.free),
            (("cached",), blocks.cached),
            (("held",), blocks.held),
            (("in_transfer",), blocks.in_transfer),
        ],
        "triptych_engine_role": [((role,), 1)],
        "triptych_engine_epoch": [((), epoch)],
        "triptych_engine_leases": [((), load.leases)],
        "triptych_engine_tasks": [((), tasks)],
        "triptych_engine_steps": [((), load.step)],
        "triptych_engine_scheduler_seconds": [((), stats.scheduler_s)],
        "triptych_handover_blocks": [(("sent",), handover.blocks_sent), (("received",), handover.blocks_received)],
        "triptych_handover_bytes": [(("sent",), handover.bytes_sent), (("received",), handover.bytes_received)],
        "triptych_handover_failed": [((reason,), count) for reason, count in failures.items()],
        "triptych_handover_refused": [((), handover.refused)],
        "triptych_handover_recomputed_tokens": [((), handover.tokens_recomputed)],
        "triptych_encoder_runs": [((), handover.encoder_runs)],
    }


class _Collector(Collector):
    def __init__(self, samples: Samples, histograms: Mapping[str, Histogram], labels: tuple[str, str]) -> None:
        self._samples = samples
        self._histograms = histograms
        self._labels = list(labels)

    def collect(self) -> Iterator[Family]:
        for metric in ENGINE:
            yield self._family(metric)

    def _family(self, metric: Metric) -> Family:
        if metric.kind is Kind.HISTOGRAM:
            family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            buckets, total = self._histograms[metric.name].render()
            family.add_metric(self._labels, buckets, total)
            return family
        kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
        plain: CounterMetricFamily | GaugeMetricFamily = kind(metric.name, metric.help, labels=metric.labels)
        for labels, value in self._samples[metric.name]:
            plain.add_metric([*self._labels, *labels], value)
        return plain


def render(samples: Samples, histograms: Mapping[str, Histogram], *, model: str, engine: str) -> bytes:
    """The text that a scrape gets."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(samples, histograms, (model, engine)))
    return generate_latest(registry)
