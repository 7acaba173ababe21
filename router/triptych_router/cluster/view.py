"""Frozen snapshots of what the router believes about instances; every decision reads one."""

from dataclasses import dataclass, field, replace
from enum import StrEnum

import msgspec

from triptych_contract.instance import FullState, InstanceRecord, InstanceState, Load, LoadSample, StateEvent
from triptych_contract.roles import STAGES, Phase, Stage

MAX_REMEMBERED = 256
"""Answers that one view remembers; clients can name more models than there are."""


class Health(StrEnum):
    """What the beats of an instance say."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"


class Dialect(StrEnum):
    """Which wire an instance speaks; only `TRIPTYCH` is routed to."""

    TRIPTYCH = "triptych"
    VLLM = "vllm"


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One life of one instance.

    Attributes:
        record: Where it is.
        state: What it said last of itself, its load kept up to date.
        health: By its beats.
        listed: Discovery names it; one that is not listed gets no new work.
    """

    record: InstanceRecord
    state: InstanceState
    health: Health = Health.ALIVE
    listed: bool = True

    @property
    def id(self) -> str:
        """Name of the instance."""
        return self.record.id

    @property
    def load(self) -> LoadSample:
        """Its last heartbeat."""
        return self.state.load

    @property
    def stages(self) -> frozenset[Stage]:
        """Stages that it takes new work for."""
        return STAGES[self.state.role]

    @property
    def usable(self) -> bool:
        """New work may be offered."""
        return self.listed and self.health is Health.ALIVE and self.state.phase is Phase.SERVING

    @property
    def key(self) -> "InstanceKey":
        """This life under this role: what a refusal speaks about."""
        return InstanceKey(self.record.id, self.record.incarnation, self.state.epoch)


@dataclass(frozen=True, slots=True)
class InstanceKey:
    """An instance, its life and its epoch."""

    id: str
    incarnation: str
    epoch: int


@dataclass(frozen=True, slots=True)
class ClusterView:
    """All instances that were heard, ordered by id.

    Attributes:
        instances: Those of one service that speak our dialect.
        complete: Every instance that discovery listed has been heard, or found unreachable.
    """

    instances: tuple[InstanceView, ...] = ()
    complete: bool = False
    _usable: dict[tuple[Stage, str], tuple[InstanceView, ...]] = field(default_factory=dict, compare=False, repr=False)

    def usable(self, stage: Stage, model: str = "") -> tuple[InstanceView, ...]:
        """Usable instances whose role has the stage, of the wanted model if one is named; found once a view."""
        key = (stage, model)
        found = self._usable.get(key)
        if found is None:
            found = tuple(
                instance
                for instance in self.instances
                if instance.usable and stage in instance.stages and model in ("", instance.state.model)
            )
            if len(self._usable) < MAX_REMEMBERED:
                self._usable[key] = found
        return found

    def find(self, instance_id: str) -> InstanceView | None:
        """The instance of this id."""
        return next((instance for instance in self.instances if instance.id == instance_id), None)

    def models(self) -> tuple[str, ...]:
        """Names of the models that are served."""
        return tuple(sorted({instance.state.model for instance in self.instances if instance.state.model}))


@dataclass(frozen=True, slots=True)
class Stream:
    """How far a state stream was read.

    Attributes:
        state: The whole state, None before the first event.
        seq: Number of the last event.
        beat_s: When it came.
    """

    state: InstanceState | None = None
    seq: int = -1
    beat_s: float = 0.0


class StreamGap(Exception):
    """Events were missed: the stream must be opened anew, which begins with the full state."""


def advance(stream: Stream, event: StateEvent, record: InstanceRecord, now_s: float) -> Stream:
    """Take one event in.

    Raises:
        StreamGap: A number is missing, the first event is no full state, or it is another life that speaks.
    """
    if stream.state is not None and event.seq != stream.seq + 1:
        raise StreamGap("a number is missing")
    if isinstance(event, FullState):
        if (event.state.id, event.state.incarnation) != (record.id, record.incarnation):
            raise StreamGap("another life answers at this address")
        return Stream(event.state, event.seq, now_s)
    if stream.state is None:
        raise StreamGap("the stream did not begin with the full state")
    if isinstance(event, Load):
        return Stream(_with_load(stream.state, event.load), event.seq, now_s)
    return replace(stream, seq=event.seq)


def _with_load(state: InstanceState, load: LoadSample) -> InstanceState:
    return msgspec.structs.replace(state, load=load)


def base_url(record: InstanceRecord) -> str:
    """Where an instance's HTTP port is."""
    host = f"[{record.host}]" if ":" in record.host else record.host
    return f"http://{host}:{record.http_port}"
