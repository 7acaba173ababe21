"""Pure: which instances may be offered a stage."""

from collections.abc import Iterable, Set

from triptych_contract.roles import Stage
from triptych_router.cluster.view import ClusterView, InstanceKey, InstanceView

Excluded = Set[InstanceKey]
"""Instances that refused this request under the role that they have."""


def candidates(view: ClusterView, stage: Stage, *, model: str = "") -> tuple[InstanceView, ...]:
    """Usable instances whose role has the stage, of the wanted model if one is named."""
    return view.usable(stage, model)


def without(instances: Iterable[InstanceView], excluded: Excluded) -> tuple[InstanceView, ...]:
    """Those that have not refused."""
    if not excluded:
        return tuple(instances)
    return tuple(instance for instance in instances if instance.key not in excluded)


def linked(instances: Iterable[InstanceView], link_class: str) -> tuple[InstanceView, ...]:
    """Those that can hand over to or take over from an instance of this link class."""
    return tuple(instance for instance in instances if instance.state.link_class == link_class)
