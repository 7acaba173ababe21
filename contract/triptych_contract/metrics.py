"""Names, labels and buckets of every metric, in one table.

The engine exports vLLM's names, so that dashboards, endpoint pickers and autoscalers work unchanged; what
vLLM's names lack has the prefix `triptych_`. Counters are shown with `_total` on the wire.
"""

from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """Prometheus type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(NamedTuple):
    """One metric family.

    `buckets` are upper bounds in the metric's unit; empty for counters and gauges.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
_REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_LENGTHS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))
_MODEL = ("model_name", "engine")

ENGINE: tuple[Metric, ...] = (
    Metric("vllm:num_requests_running", Kind.GAUGE, "Requests in the running batch.", _MODEL),
    Metric("vllm:num_requests_waiting", Kind.GAUGE, "Requests waiting to be admitted.", _MODEL),
    Metric("vllm:kv_cache_usage_perc", Kind.GAUGE, "Share of KV blocks in use, 0 to 1.", _MODEL),
    Metric(
        "vllm:cache_config_info", Kind.GAUGE, "Geometry of the KV cache.", (*_MODEL, "block_size", "num_gpu_blocks")
    ),
    Metric("vllm:prompt_tokens", Kind.COUNTER, "Prompt tokens received.", _MODEL),
    Metric("vllm:generation_tokens", Kind.COUNTER, "Tokens generated.", _MODEL),
    Metric("vllm:prefix_cache_queries", Kind.COUNTER, "Prompt tokens looked up in the prefix cache.", _MODEL),
    Metric("vllm:prefix_cache_hits", Kind.COUNTER, "Prompt tokens found in the prefix cache.", _MODEL),
    Metric("vllm:num_preemptions", Kind.COUNTER, "Running requests whose blocks were taken back.", _MODEL),
    Metric("vllm:request_success", Kind.COUNTER, "Finished requests.", (*_MODEL, "finished_reason")),
    Metric("vllm:time_to_first_token_seconds", Kind.HISTOGRAM, "Time to first token.", _MODEL, _TTFT_S),
    Metric("vllm:inter_token_latency_seconds", Kind.HISTOGRAM, "Gap between two tokens.", _MODEL, _TOKEN_S),
    Metric(
        "vllm:request_time_per_output_token_seconds",
        Kind.HISTOGRAM,
        "Mean time per output token of a request.",
        _MODEL,
        _TOKEN_S,
    ),
    Metric("vllm:e2e_request_latency_seconds", Kind.HISTOGRAM, "Whole time of a request.", _MODEL, _REQUEST_S),
    Metric("vllm:request_queue_time_seconds", Kind.HISTOGRAM, "Time waiting for admission.", _MODEL, _REQUEST_S),
    Metric("vllm:request_prefill_time_seconds", Kind.HISTOGRAM, "Admission to first token.", _MODEL, _REQUEST_S),
    Metric("vllm:request_decode_time_seconds", Kind.HISTOGRAM, "First to last token.", _MODEL, _REQUEST_S),
    Metric("vllm:request_prompt_tokens", Kind.HISTOGRAM, "Prompt tokens of a request.", _MODEL, _LENGTHS),
    Metric("vllm:request_generation_tokens", Kind.HISTOGRAM, "Tokens generated for a request.", _MODEL, _LENGTHS),
    Metric("triptych_engine_blocks", Kind.GAUGE, "KV blocks by state.", (*_MODEL, "state")),
    Metric("triptych_engine_role", Kind.GAUGE, "1 for the role held now.", (*_MODEL, "role")),
    Metric("triptych_engine_epoch", Kind.GAUGE, "Epoch of the role.", _MODEL),
    Metric("triptych_engine_leases", Kind.GAUGE, "Leases held for other instances.", _MODEL),
    Metric("triptych_engine_tasks", Kind.GAUGE, "Tasks of the server's event loop; flat when idle.", _MODEL),
    Metric("triptych_engine_steps", Kind.COUNTER, "Steps finished.", _MODEL),
    Metric("triptych_engine_scheduler_seconds", Kind.COUNTER, "Time spent on deciding steps.", _MODEL),
    Metric("triptych_handover_blocks", Kind.COUNTER, "KV blocks handed over.", (*_MODEL, "direction")),
    Metric("triptych_handover_bytes", Kind.COUNTER, "Bytes handed over.", (*_MODEL, "direction")),
    Metric("triptych_handover_seconds", Kind.HISTOGRAM, "Time of one pull.", _MODEL, _TTFT_S),
    Metric("triptych_handover_failed", Kind.COUNTER, "Transfers discarded, by reason.", (*_MODEL, "reason")),
    Metric("triptych_handover_refused", Kind.COUNTER, "Tickets and links refused.", _MODEL),
    Metric("triptych_handover_recomputed_tokens", Kind.COUNTER, "Prompt tokens computed by decode legs.", _MODEL),
    Metric("triptych_encoder_runs", Kind.COUNTER, "Images embedded.", _MODEL),
)

ROUTER: tuple[Metric, ...] = (
    Metric("triptych_router_requests", Kind.COUNTER, "Requests ended, by outcome.", ("model_name", "outcome")),
    Metric("triptych_router_requests_in_flight", Kind.GAUGE, "Requests accepted and not ended.", ("model_name",)),
    Metric("triptych_router_queue_depth", Kind.GAUGE, "Requests waiting for an instance.", ("model_name",)),
    Metric("triptych_router_queue_seconds", Kind.HISTOGRAM, "Time waiting for an instance.", ("model_name",), _TTFT_S),
    Metric(
        "triptych_router_time_to_first_token_seconds",
        Kind.HISTOGRAM,
        "Time to the first event as the router sees it.",
        ("model_name",),
        _TTFT_S,
    ),
    Metric("triptych_router_request_seconds", Kind.HISTOGRAM, "Whole time of a request.", ("model_name",), _REQUEST_S),
    Metric("triptych_router_attempts", Kind.COUNTER, "Attempts of legs.", ("stage", "outcome")),
    Metric("triptych_router_retries", Kind.COUNTER, "Attempts after the first, by cause.", ("stage", "cause")),
    Metric("triptych_router_decisions", Kind.COUNTER, "Routes chosen, by shape.", ("shape",)),
    Metric("triptych_router_rejected", Kind.COUNTER, "Requests refused before routing.", ("reason",)),
    Metric("triptych_router_tasks", Kind.GAUGE, "Tasks of the router's event loop; flat when idle."),
    Metric("triptych_router_instances", Kind.GAUGE, "Instances in the view.", ("role", "health")),
)

OPERATOR: tuple[Metric, ...] = (
    Metric("triptych_operator_reconciles", Kind.COUNTER, "Reconciles, by outcome.", ("outcome",)),
    Metric("triptych_operator_restarts", Kind.COUNTER, "Children started again.", ("component",)),
)
