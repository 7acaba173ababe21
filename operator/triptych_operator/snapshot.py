"""What the operator knows at one moment: frozen, so that every decision over it can be repeated in a test."""

from dataclasses import dataclass
from enum import StrEnum

from triptych_contract.instance import InstanceState
from triptych_contract.roles import Assignment
from triptych_operator.spec.types import LLMService


class Component(StrEnum):
    """What a child runs."""

    ENGINE = "engine"
    ENCODE = "encode"
    ROUTER = "router"


@dataclass(frozen=True, slots=True)
class ObservedChild:
    """One process that the platform started, alive or not. Times are seconds of the operator's clock.

    Attributes:
        name: Of the child; an instance's id.
        alive: The process exists.
        pid: Of the last process, None before the first.
        exit_code: Of the last process that ended; negative for a signal.
        starts: How often it was started.
        crashes: Ends in a row without a healthy minute between them.
        started_s: Last start.
        ended_s: Last end.
        listened: It said where it listens.
        stopping: It was told to end.
        assigned: The last role that the instance took from this operator, kept over restarts.
        silent_since_s: First missed answer since its last answer; None while it answers.
        last_words: What it said last that may tell why it last ended; empty if it said nothing of the kind.
        given_up: Why the operator itself last ended it at once; empty where it ended by itself.
    """

    name: str
    component: Component
    alive: bool
    pid: int | None = None
    exit_code: int | None = None
    starts: int = 0
    crashes: int = 0
    started_s: float = 0.0
    ended_s: float = 0.0
    listened: bool = False
    stopping: bool = False
    assigned: Assignment | None = None
    silent_since_s: float | None = None
    last_words: str = ""
    given_up: str = ""


@dataclass(frozen=True, slots=True)
class ObservedInstance:
    """An instance's own words, or None where it did not answer in time."""

    id: str
    state: InstanceState | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a reconcile may look at.

    Attributes:
        service: What is wanted.
        children: What the platform started.
        instances: What the instances answered.
        router_ready: The router has a view and a route.
        url: Base URL of the service, empty until the router listens.
    """

    service: LLMService
    children: tuple[ObservedChild, ...] = ()
    instances: tuple[ObservedInstance, ...] = ()
    router_ready: bool = False
    url: str = ""

    def child(self, name: str) -> ObservedChild | None:
        """The child of that name."""
        return next((child for child in self.children if child.name == name), None)

    def state(self, name: str) -> InstanceState | None:
        """What the instance of that name answered."""
        return next((instance.state for instance in self.instances if instance.id == name), None)
