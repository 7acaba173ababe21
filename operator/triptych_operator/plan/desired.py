"""Which children there are to be, and which role each one has.

The size comes from the spec: written replicas or a written split, else the lower bound. The split is one to one
with the odd instance to decode. Roles are given so that counts reach the split with the fewest changes: whoever
has, or last had, a wanted role keeps it.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from triptych_contract.roles import Role
from triptych_operator.snapshot import Component, Snapshot
from triptych_operator.spec.types import Planner, ServiceSpec

ROUTER = "router"


@dataclass(frozen=True, slots=True)
class DesiredChild:
    """One child that is to run; `role` is None for a router."""

    name: str
    component: Component
    role: Role | None
    because: str


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many instances of each role, and in words who said so."""

    encode: int
    prefill: int
    decode: int
    mixed: int
    replicas_owner: str
    roles_owner: str

    @property
    def engines(self) -> int:
        """Instances that can prefill or decode."""
        return self.prefill + self.decode + self.mixed

    def roles(self) -> Counter[Role]:
        """Wanted number of each role among the engines."""
        wanted = {Role.PREFILL: self.prefill, Role.DECODE: self.decode, Role.MIXED: self.mixed}
        return Counter({role: count for role, count in wanted.items() if count})


def topology_of(spec: ServiceSpec, target: int) -> str:
    """The written topology, else the one that follows from the sizes."""
    if spec.topology is not None:
        return spec.topology
    if spec.encode is not None:
        return "EPD"
    return "PD" if spec.prefill is not None or target >= 2 else "Mixed"


def sizes_of(spec: ServiceSpec) -> Sizes:
    """The sizes that a spec asks for (the rows of the table in docs/llmservice.md)."""
    encode = spec.encode.replicas if spec.encode else 0
    if spec.prefill is not None and spec.decode is not None:
        return Sizes(encode, spec.prefill.replicas, spec.decode.replicas, 0, "prefill and decode", "prefill and decode")
    target, owner = _target(spec)
    prefill, decode, mixed = _split(spec, target)
    return Sizes(encode, prefill, decode, mixed, owner, "topology" if mixed and not prefill else "default split")


def _floors(spec: ServiceSpec) -> tuple[int, int]:
    planner = spec.planner or Planner()
    return planner.min_prefill, planner.min_decode


def _target(spec: ServiceSpec) -> tuple[int, str]:
    if spec.replicas is not None:
        return spec.replicas, "replicas"
    bound = spec.scaling.min_replicas if spec.scaling else 1
    if spec.topology in ("PD", "EPD"):
        bound = max(bound, sum(_floors(spec)))
    return bound, "lower bound"


def _split(spec: ServiceSpec, target: int) -> tuple[int, int, int]:
    """Prefill, decode, mixed: half to prefill within the floors; a pool below its floors runs mixed."""
    least_prefill, least_decode = _floors(spec)
    if topology_of(spec, target) == "Mixed" or target < least_prefill + least_decode:
        return 0, 0, target
    prefill = min(max(target // 2, least_prefill), target - least_decode)
    return prefill, target - prefill, 0


def desired(snapshot: Snapshot) -> tuple[DesiredChild, ...]:
    """Every child that is to run, engines first, the router last."""
    sizes = sizes_of(snapshot.service.spec)
    names = [f"engine-{index}" for index in range(sizes.engines)]
    roles = _give_roles(names, sizes.roles(), snapshot)
    engines = (
        DesiredChild(name, Component.ENGINE, roles[name], f"{sizes.roles_owner} wants {roles[name]}") for name in names
    )
    encoders = (
        DesiredChild(f"encode-{index}", Component.ENCODE, Role.ENCODE, "encode wants it")
        for index in range(sizes.encode)
    )
    router = DesiredChild(ROUTER, Component.ROUTER, None, "every service has a router")
    return (*engines, *encoders, router)


def _give_roles(names: Iterable[str], wanted: Counter[Role], snapshot: Snapshot) -> dict[str, Role]:
    """A role for every name, such that the counts are as wanted and as few instances as possible change."""
    names = list(names)
    left = Counter(wanted)
    given: dict[str, Role] = {}
    for name in names:
        role = _present_role(name, snapshot)
        if role is not None and left[role] > 0:
            given[name] = role
            left[role] -= 1
    rest = iter([role for role in (Role.PREFILL, Role.DECODE, Role.MIXED) for _ in range(left[role])])
    return {name: given.get(name) or next(rest) for name in names}


def _present_role(name: str, snapshot: Snapshot) -> Role | None:
    """The role that an instance has, else the one that it had before it was lost."""
    state = snapshot.state(name)
    if state is not None and state.role != Role.UNASSIGNED and state.epoch > 0:
        child = snapshot.child(name)
        kept = child.assigned if child else None
        return state.role if kept is None or kept.epoch <= state.epoch else kept.role
    child = snapshot.child(name)
    return child.assigned.role if child and child.assigned else None
