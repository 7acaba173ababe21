"""Who owns replicas and roles: every row of the table in docs/llmservice.md, named in words."""

import pytest

from fakes.services import service
from triptych_operator.plan.desired import sizes_of

# words: spec, (encode, prefill, decode, mixed), owner of replicas, owner of roles
CASES = {
    "a model only runs one mixed instance": ("", (0, 0, 0, 1), "lower bound", "topology"),
    "a written PD runs one of each": ("topology: PD", (0, 1, 1, 0), "lower bound", "default split"),
    "a written PD keeps its floors": (
        "topology: PD\nreplicas: 5\nplanner: {minPrefill: 3, minDecode: 1}",
        (0, 3, 2, 0),
        "replicas",
        "default split",
    ),
    "a written split is taken as it is": (
        "prefill: {replicas: 2}\ndecode: {replicas: 3}",
        (0, 2, 3, 0),
        "prefill and decode",
        "prefill and decode",
    ),
    "replicas are split one to one": ("replicas: 4", (0, 2, 2, 0), "replicas", "default split"),
    "the odd instance decodes": ("replicas: 5", (0, 2, 3, 0), "replicas", "default split"),
    "two replicas are one of each": ("replicas: 2", (0, 1, 1, 0), "replicas", "default split"),
    "one replica is mixed": ("replicas: 1", (0, 0, 0, 1), "replicas", "topology"),
    "no replicas are none": ("replicas: 0", (0, 0, 0, 0), "replicas", "default split"),
    "a planner that may flip starts from the default split": (
        "replicas: 4\nplanner: {mode: Auto}",
        (0, 2, 2, 0),
        "replicas",
        "default split",
    ),
    "a planner that may scale starts from replicas": (
        "replicas: 4\nscaling: {maxReplicas: 8}\nplanner: {mode: Auto, manages: [Replicas]}",
        (0, 2, 2, 0),
        "replicas",
        "default split",
    ),
    "a planner that may scale starts from the lower bound": (
        "scaling: {minReplicas: 3, maxReplicas: 8}\nplanner: {mode: Auto, manages: [Roles, Replicas]}",
        (0, 1, 2, 0),
        "lower bound",
        "default split",
    ),
    "a written EPD adds its encoders": (
        "topology: EPD\nencode: {replicas: 2}",
        (2, 1, 1, 0),
        "lower bound",
        "default split",
    ),
    "encoders beside one instance leave it mixed": ("encode: {}", (1, 0, 0, 1), "lower bound", "topology"),
    "Mixed runs every instance mixed": ("topology: Mixed\nreplicas: 3", (0, 0, 0, 3), "replicas", "topology"),
    "a pool below its floors runs mixed": (
        "scaling: {minReplicas: 2, maxReplicas: 8}\nplanner: {minPrefill: 2, minDecode: 2}\nreplicas: 4",
        (0, 2, 2, 0),
        "replicas",
        "default split",
    ),
    "a lower bound below the floors runs mixed": (
        "scaling: {minReplicas: 2, maxReplicas: 8}\n"
        "planner: {mode: Auto, manages: [Replicas], minPrefill: 2, minDecode: 2}",
        (0, 0, 0, 2),
        "lower bound",
        "topology",
    ),
}


@pytest.mark.parametrize(("spec", "counts", "replicas", "roles"), CASES.values(), ids=CASES.keys())
def test_sizes(spec: str, counts: tuple[int, int, int, int], replicas: str, roles: str) -> None:
    sizes = sizes_of(service(spec).spec)
    assert (sizes.encode, sizes.prefill, sizes.decode, sizes.mixed) == counts
    assert (sizes.replicas_owner, sizes.roles_owner) == (replicas, roles)
