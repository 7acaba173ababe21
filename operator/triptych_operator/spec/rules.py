"""The rules between fields. Each is a CEL rule of the CRD, written out in Python for the local platform.

A rule sees the spec after defaults. It is left unchecked where the schema already refused a field that it reads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        name: Its name in the CRD's table.
        scope: Dotted path of the mapping that the predicate sees; empty is the whole object.
        reads: Fields that it looks at, relative to the scope; the first one present is where a fault is shown.
        holds: True if the mapping is as it should be.
        message: What to write instead.
    """

    name: str
    scope: str
    reads: tuple[str, ...]
    holds: Callable[[Values], bool]
    message: str


def lookup(values: Values, path: str) -> Any:
    """The value at a dotted path, None if it is absent."""
    found: Any = values
    for part in path.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found


def _has(values: Values, path: str) -> bool:
    return lookup(values, path) is not None


def _auto(spec: Values) -> bool:
    return bool(lookup(spec, "planner.mode") == "Auto")


def _manages(spec: Values, what: str) -> bool:
    return what in (lookup(spec, "planner.manages") or ())


def _sizing(spec: Values) -> bool:
    return not _has(spec, "replicas") or not (_has(spec, "prefill") or _has(spec, "decode"))


def _pd_minimum(spec: Values) -> bool:
    return lookup(spec, "topology") not in ("PD", "EPD") or lookup(spec, "replicas") != 1


def _encode(spec: Values) -> bool:
    return not _has(spec, "topology") or (spec["topology"] == "EPD") == _has(spec, "encode")


def _mixed(spec: Values) -> bool:
    if lookup(spec, "topology") != "Mixed":
        return True
    return not _has(spec, "prefill") and not (_auto(spec) and _manages(spec, "Roles"))


def _owner(spec: Values) -> bool:
    return not _has(spec, "planner") or _manages(spec, "Replicas") or _has(spec, "replicas") or _has(spec, "prefill")


def _bounds(spec: Values) -> bool:
    return not _has(spec, "scaling") or bool(spec["scaling"]["minReplicas"] <= spec["scaling"]["maxReplicas"])


def _ceiling(spec: Values) -> bool:
    if not _has(spec, "scaling"):
        return True
    most = spec["scaling"]["maxReplicas"]
    sizes = [lookup(spec, "replicas") or 0]
    if _has(spec, "prefill") and _has(spec, "decode"):
        sizes.append(spec["prefill"]["replicas"] + spec["decode"]["replicas"])
    return all(size <= most for size in sizes)


def _floors(spec: Values) -> bool:
    if not _has(spec, "planner"):
        return True
    floor = spec["planner"]["minPrefill"] + spec["planner"]["minDecode"]
    sizes = [lookup(spec, "replicas"), lookup(spec, "scaling.maxReplicas")]
    return all(size is None or size < 2 or floor <= size for size in sizes)


def _to_zero(spec: Values) -> bool:
    return not _has(spec, "scaling") or spec["scaling"]["minReplicas"] > 0 or _has(spec, "scaling.idleSeconds")


def _fetch(spec: Values) -> bool:
    if not str(spec["model"]["source"]).startswith("hf://"):
        return True
    return _has(spec, "model.cache.claim") or spec["model"]["egress"] == "Allowed"


def _gateway(spec: Values) -> bool:
    return lookup(spec, "router.ingress.kind") != "HTTPRoute" or _has(spec, "router.ingress.gateway")


_HOST_FIELDS = ("hostNetwork", "hostPID", "hostIPC", "serviceAccountName", "securityContext")


def _overrides(scope: str) -> Rule:
    return Rule(
        "overrides",
        scope,
        _HOST_FIELDS,
        lambda pod: not any(name in pod for name in _HOST_FIELDS),
        "pods run without host access and with the operator's own account; remove this field.",
    )


RULES: tuple[Rule, ...] = (
    Rule("sizing", "spec", ("replicas", "prefill", "decode"), _sizing, "write replicas, or prefill and decode."),
    Rule(
        "pair",
        "spec",
        ("prefill", "decode"),
        lambda spec: _has(spec, "prefill") == _has(spec, "decode"),
        "prefill and decode stand together; write both, or replicas alone.",
    ),
    Rule(
        "split-auto",
        "spec",
        ("planner.mode", "prefill"),
        lambda spec: not _has(spec, "prefill") or not _auto(spec),
        "a written split leaves the planner nothing to decide; write replicas, or mode: Advisory.",
    ),
    Rule(
        "pd-min",
        "spec",
        ("replicas", "topology"),
        _pd_minimum,
        "PD and EPD need two instances; write replicas: 2 or more, or topology: Mixed.",
    ),
    Rule(
        "encode",
        "spec",
        ("topology", "encode"),
        _encode,
        "encode belongs to topology: EPD and EPD needs it; write both, or neither.",
    ),
    Rule(
        "mixed",
        "spec",
        ("topology", "prefill", "planner.mode", "planner.manages"),
        _mixed,
        "in topology: Mixed every instance has both roles; remove the split and Roles from planner.manages.",
    ),
    Rule(
        "owner",
        "spec",
        ("planner", "replicas", "prefill"),
        _owner,
        "set replicas (HPA, KEDA and kubectl scale write it), or add Replicas to planner.manages.",
    ),
    Rule(
        "range",
        "spec",
        ("planner.manages", "scaling"),
        lambda spec: not _manages(spec, "Replicas") or _has(spec, "scaling"),
        "a planner that manages Replicas needs bounds; add scaling: {maxReplicas: N}.",
    ),
    Rule(
        "bounds",
        "spec",
        ("scaling.minReplicas", "scaling.maxReplicas"),
        _bounds,
        "write minReplicas that is not above maxReplicas.",
    ),
    Rule(
        "ceiling",
        "spec",
        ("scaling.maxReplicas", "replicas", "prefill", "decode"),
        _ceiling,
        "there are more instances than scaling.maxReplicas; raise it, or write fewer.",
    ),
    Rule(
        "floors",
        "spec",
        ("planner.minPrefill", "planner.minDecode", "replicas", "scaling.maxReplicas"),
        _floors,
        "minPrefill + minDecode is above the number of instances; lower a floor, or raise replicas and maxReplicas.",
    ),
    Rule(
        "to-zero",
        "spec",
        ("scaling.minReplicas", "scaling.idleSeconds"),
        _to_zero,
        "minReplicas: 0 needs to know when; add scaling.idleSeconds.",
    ),
    Rule(
        "surge",
        "spec",
        ("rollout.maxSurge", "rollout.maxUnavailable"),
        lambda spec: spec["rollout"]["maxSurge"] + spec["rollout"]["maxUnavailable"] >= 1,
        "a rollout needs room; write maxSurge: 1 or maxUnavailable: 1.",
    ),
    Rule(
        "fetch",
        "spec",
        ("model.source", "model.egress", "model.cache.claim"),
        _fetch,
        "hf:// is fetched over the network; write egress: Allowed, or cache: {claim: NAME}.",
    ),
    Rule(
        "cache",
        "spec",
        ("model.cache.claim", "model.cache.emptyDir"),
        lambda spec: not (_has(spec, "model.cache.claim") and _has(spec, "model.cache.emptyDir")),
        "a cache is a claim or an emptyDir; write one of them.",
    ),
    Rule(
        "gateway",
        "spec",
        ("router.ingress.kind", "router.ingress.gateway"),
        _gateway,
        "an HTTPRoute hangs on a Gateway; add ingress.gateway.",
    ),
    Rule(
        "tls",
        "spec",
        ("router.tls",),
        lambda spec: not _has(spec, "router.tls"),
        "the router does not serve TLS; remove tls and end TLS in front of it.",
    ),
    _overrides("spec.engine.podOverrides"),
    _overrides("spec.router.podOverrides"),
    Rule(
        "name",
        "",
        ("metadata.name",),
        lambda whole: len(whole["metadata"]["name"]) <= 40,
        "write a name of at most 40 characters, so that derived names stay within 63.",
    ),
)
"""Every rule, in the order of the CRD's table."""
