"""What the local platform serves: fields it acts on, fields it names as ignored, fields it refuses.

A security field that is not served is refused, so that nobody believes in a protection that is not there.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from triptych_operator.spec.rules import lookup

ACTED_ON = frozenset(
    {
        "model.source",
        "model.revision",
        "model.servedName",
        "model.egress",
        "topology",
        "replicas",
        "prefill.replicas",
        "decode.replicas",
        "encode.replicas",
        "engine.profile",
        "engine.maxContext",
        "engine.args",
        "engine.env",
        "router.maxQueue",
        "planner.minPrefill",
        "planner.minDecode",
        "scaling.minReplicas",
        "drainSeconds",
        "suspend",
    }
)
"""Fields of `spec` that the local platform acts on; beside these, values that ask for what happens anyway."""

_AS_IT_IS: Mapping[str, tuple[Any, ...]] = {
    "engine.tensorParallel": (1,),
    "router.replicas": (1,),
    "router.policy": ("Auto", "RoundRobin"),
    "router.service.type": ("ClusterIP",),
    "router.ingress.kind": ("None",),
    "planner.mode": ("Disabled",),
    "recovery.maxMigrations": (0,),
    "kvCache.transfer": ("Auto", "TCP"),
}

OWNED_FLAGS = (
    *("--host", "--port", "--kv-port", "--instance-id", "--service", "--role", "--capable", "--discovery"),
    *("--token-file", "--insecure", "--exit-with-stdin", "--model", "--sim", "--served-name"),
)
"""Arguments of an engine that only the operator writes."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A field that the local platform does not serve and may not ignore."""

    path: str
    refused: Callable[[Any], bool]
    message: str


def _present(value: Any) -> bool:
    return value is not None


def _scheme(*schemes: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value.startswith(tuple(f"{scheme}://" for scheme in schemes))


def _owned_flag(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return any(str(item).split("=")[0] in OWNED_FLAGS for item in value)


REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        "model.source",
        _scheme("pvc", "oci"),
        "pvc:// and oci:// exist on Kubernetes only; write host://PATH, hf://REPO or demo://.",
    ),
    Refusal("model.tokenSecretRef", _present, "there are no Secrets here; remove it and set HF_TOKEN."),
    Refusal(
        "router.apiKeys",
        _present,
        "there are no Secrets here; remove it (the service listens on loopback only, where no key is needed).",
    ),
    Refusal(
        "router.ingress.kind",
        lambda value: isinstance(value, str) and value != "None",
        "the service listens on loopback only; write kind: None and put a proxy of your own in front.",
    ),
    Refusal("router.ingress.tlsSecretRef", _present, "there is no TLS here; remove it."),
    Refusal(
        "router.service.type",
        lambda value: value in ("NodePort", "LoadBalancer"),
        "the service listens on loopback only; write ClusterIP.",
    ),
    Refusal("engine.runtimeClassName", _present, "processes of this machine have no sandbox; remove it."),
    Refusal("router.runtimeClassName", _present, "processes of this machine have no sandbox; remove it."),
    Refusal(
        "engine.profile", lambda value: value == "npu", "there is no NPU executor yet; write auto, cpu, cuda or sim."
    ),
    Refusal("engine.args", _owned_flag, f"the operator writes {', '.join(OWNED_FLAGS)} itself; remove them."),
)
"""Every refusal of the local platform."""


def refused(spec: Mapping[str, Any]) -> Iterator[Refusal]:
    """The refusals that a spec, as written, meets."""
    return (refusal for refusal in REFUSALS if refusal.refused(lookup(spec, refusal.path)))


def ignored_fields(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Dotted paths, from `spec` on, that the file sets and the local platform does not act on.

    A mapping of which nothing is acted on is named once, by its own path.
    """
    return tuple(f"spec.{path}" for path in _ignored(spec, ""))


def _ignored(values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in values.items():
        path = f"{prefix}{name}"
        if value is None or path in ACTED_ON or value in _AS_IT_IS.get(path, ()):
            continue
        if isinstance(value, Mapping) and _leads_to_acted_on(path):
            yield from _ignored(value, f"{path}.")
        else:
            yield path


def _leads_to_acted_on(path: str) -> bool:
    return any(known.startswith(f"{path}.") for known in (*ACTED_ON, *_AS_IT_IS))
