"""The spec as frozen types: what the operator acts on. Fields that only Kubernetes reads stay out of here."""

import msgspec


class _Part(msgspec.Struct, frozen=True, rename="camel"):
    """A part of the spec; names are camelCase in the file."""


class Model(_Part, frozen=True):
    """What is served; `source` is a URL of one of the known schemes."""

    source: str
    revision: str = ""
    served_name: str = ""
    egress: str = "Denied"


class Pool(_Part, frozen=True):
    """A written number of instances."""

    replicas: int = 1


class EnvVar(_Part, frozen=True):
    """An environment variable of an instance."""

    name: str
    value: str = ""


class Engine(_Part, frozen=True):
    """How instances run."""

    profile: str = "auto"
    max_context: int = 8192
    args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()


class Router(_Part, frozen=True):
    """The front door."""

    policy: str = "Auto"
    max_queue: int = 1024


class Planner(_Part, frozen=True):
    """Who decides, and the floors of the split."""

    mode: str = "Advisory"
    manages: tuple[str, ...] = ("Roles",)
    min_prefill: int = 1
    min_decode: int = 1


class Scaling(_Part, frozen=True):
    """Bounds of the number of instances."""

    max_replicas: int
    min_replicas: int = 1


class ServiceSpec(_Part, frozen=True):
    """`.spec` with defaults; None where the file says nothing and that means something."""

    model: Model
    topology: str | None = None
    replicas: int | None = None
    prefill: Pool | None = None
    decode: Pool | None = None
    encode: Pool | None = None
    engine: Engine = Engine()
    router: Router = Router()
    planner: Planner | None = None
    scaling: Scaling | None = None
    drain_seconds: int = 30
    suspend: bool = False


class LLMService(msgspec.Struct, frozen=True):
    """One service.

    Attributes:
        name: Of the object; also of its state directory and of discovery.
        spec: What is wanted.
        ignored_fields: Dotted paths that the file sets and this version does not act on yet.
    """

    name: str
    spec: ServiceSpec
    ignored_fields: tuple[str, ...] = ()

    @property
    def served_name(self) -> str:
        """The model's name for clients."""
        if self.spec.model.served_name:
            return self.spec.model.served_name
        scheme, _, rest = self.spec.model.source.partition("://")
        return {"demo": "demo"}.get(scheme) or (rest.rstrip("/").split("@")[0] if scheme == "hf" else self.name)
