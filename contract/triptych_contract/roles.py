"""Roles as sets of stages, and the two tables by which an instance's role and phase change.

A role is an admission mask: it says which **new** work an instance is offered. An instance with any
role runs the same image with the same memory layout, so changing the role needs no restart.
The diagrams in docs/architecture.md are generated from `PHASES`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Stage(StrEnum):
    """One part of a request's way: media to embeddings, prompt to KV, KV to tokens."""

    ENCODE = "encode"
    PREFILL = "prefill"
    DECODE = "decode"


class Role(StrEnum):
    """A named set of stages."""

    UNASSIGNED = "unassigned"
    ENCODE = "encode"
    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"
    ENCODE_PREFILL = "encode-prefill"
    ENCODE_DECODE = "encode-decode"
    ALL = "all"


STAGES: Mapping[Role, frozenset[Stage]] = MappingProxyType(
    {
        Role.UNASSIGNED: frozenset(),
        Role.ENCODE: frozenset({Stage.ENCODE}),
        Role.PREFILL: frozenset({Stage.PREFILL}),
        Role.DECODE: frozenset({Stage.DECODE}),
        Role.MIXED: frozenset({Stage.PREFILL, Stage.DECODE}),
        Role.ENCODE_PREFILL: frozenset({Stage.ENCODE, Stage.PREFILL}),
        Role.ENCODE_DECODE: frozenset({Stage.ENCODE, Stage.DECODE}),
        Role.ALL: frozenset(Stage),
    }
)
_BY_STAGES: Mapping[frozenset[Stage], Role] = {stages: role for role, stages in STAGES.items()}


def role_of(stages: frozenset[Stage]) -> Role:
    """The role with exactly these stages."""
    return _BY_STAGES[stages]


def roles_within(capable: frozenset[Stage]) -> tuple[Role, ...]:
    """Every role that an instance with these capabilities can take, in the order of `Role`."""
    return tuple(role for role in Role if STAGES[role] <= capable)


@dataclass(frozen=True, slots=True)
class Assignment:
    """A role and the number of its assignment; the epoch rises by one with each change of role."""

    role: Role
    epoch: int


class Verdict(StrEnum):
    """What an instance answers to a wanted assignment."""

    ACCEPT = "accept"
    SAME = "same"
    STALE = "stale"
    CONFLICT = "conflict"
    INCAPABLE = "incapable"


def judge(current: Assignment, wanted: Assignment, capable: frozenset[Stage]) -> Verdict:
    """Decide on a wanted assignment: idempotent by epoch, an epoch never goes back or changes its role."""
    if not STAGES[wanted.role] <= capable:
        return Verdict.INCAPABLE
    if wanted.epoch < current.epoch:
        return Verdict.STALE
    if wanted.epoch > current.epoch:
        return Verdict.ACCEPT
    return Verdict.SAME if wanted.role == current.role else Verdict.CONFLICT


class Phase(StrEnum):
    """Where an instance is in its life."""

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    DRAINED = "drained"
    FAILED = "failed"


class PhaseEvent(StrEnum):
    """What moves an instance from one phase to the next."""

    LOADED = "loaded"
    LOAD_FAILED = "load-failed"
    CORE_LOST = "core-lost"
    DRAIN = "drain"
    CANCEL_DRAIN = "cancel-drain"
    EMPTY = "empty"


PHASES: Mapping[tuple[Phase, PhaseEvent], Phase] = MappingProxyType(
    {
        (Phase.LOADING, PhaseEvent.LOADED): Phase.SERVING,
        (Phase.LOADING, PhaseEvent.LOAD_FAILED): Phase.FAILED,
        (Phase.LOADING, PhaseEvent.CORE_LOST): Phase.FAILED,
        (Phase.LOADING, PhaseEvent.DRAIN): Phase.DRAINING,
        (Phase.SERVING, PhaseEvent.DRAIN): Phase.DRAINING,
        (Phase.SERVING, PhaseEvent.CORE_LOST): Phase.FAILED,
        (Phase.DRAINING, PhaseEvent.CANCEL_DRAIN): Phase.SERVING,
        (Phase.DRAINING, PhaseEvent.EMPTY): Phase.DRAINED,
        (Phase.DRAINING, PhaseEvent.CORE_LOST): Phase.FAILED,
        (Phase.DRAINED, PhaseEvent.CANCEL_DRAIN): Phase.SERVING,
        (Phase.DRAINED, PhaseEvent.CORE_LOST): Phase.FAILED,
    }
)


def next_phase(phase: Phase, event: PhaseEvent) -> Phase:
    """The phase after an event; an event that a phase does not know leaves it as it is."""
    return PHASES.get((phase, event), phase)
