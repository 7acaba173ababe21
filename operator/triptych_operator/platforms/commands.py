"""The argv of every child: what the spec says, as flags. Lists only; nothing passes through a shell."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych_operator.plan.desired import sizes_of
from triptych_operator.snapshot import Component
from triptych_operator.spec.types import LLMService

ENGINE_PROGRAM = (sys.executable, "-m", "triptych_engine.main")
ROUTER_PROGRAM = (sys.executable, "-m", "triptych_router.main")
_POLICIES = {"RoundRobin": "RoundRobin"}


@dataclass(frozen=True, slots=True)
class Programs:
    """What children run; tests put their own programs here."""

    engine: Sequence[str] = ENGINE_PROGRAM
    router: Sequence[str] = ROUTER_PROGRAM


@dataclass(frozen=True, slots=True)
class Commands:
    """Builds argv and environment.

    Attributes:
        service: What is wanted.
        model_dir: Folder of the weights; None runs the simulated engine.
        discovery: Directory of the records.
        token_file: The service token.
        threads: Compute threads of one instance.
        max_context: Longest prompt plus output in tokens.
        device: `auto`, `cpu` or `cuda`.
        programs: What children run.
    """

    service: LLMService
    model_dir: Path | None
    discovery: Path
    token_file: Path
    threads: int
    max_context: int
    device: str = "auto"
    programs: Programs = Programs()

    def engine(self, name: str, component: Component) -> list[str]:
        """argv of an instance; it boots without a role and gets one from the operator."""
        spec = self.service.spec
        model = ["--sim"] if self.model_dir is None else ["--model", str(self.model_dir), "--device", self.device]
        capable = "encode" if component == Component.ENCODE else "prefill,decode"
        return [
            *self.programs.engine,
            *model,
            *("--served-name", self.service.served_name),
            *("--instance-id", name),
            *("--capable", capable),
            *("--threads", str(self.threads)),
            *("--max-context", str(self.max_context)),
            *self._shared(),
            *spec.engine.args,
        ]

    def router(self, port: int) -> list[str]:
        """argv of the router on a port."""
        spec = self.service.spec
        return [
            *self.programs.router,
            *("--model", self.service.served_name),
            *("--port", str(port)),
            *("--policy", _POLICIES.get(spec.router.policy, "LeastLoad")),
            *("--max-queue", str(spec.router.max_queue)),
            # On one machine the pools are there to be seen, however small the model; elsewhere the gain decides.
            *("--handover-min-tokens", "0"),
            "--expose-route",
            *self._shared(),
        ]

    def environment(self, component: Component) -> dict[str, str]:
        """Variables beside those of the operator."""
        if component == Component.ROUTER:
            return {}
        threads = {"OMP_NUM_THREADS": str(self.threads)}
        return threads | {variable.name: variable.value for variable in self.service.spec.engine.env}

    def _shared(self) -> list[str]:
        return [
            *("--host", "127.0.0.1"),
            *("--service", self.service.name),
            *("--discovery", f"local:{self.discovery}"),
            *("--token-file", str(self.token_file)),
            *("--drain-s", str(self.service.spec.drain_seconds)),
            "--exit-with-stdin",
        ]


def threads_for(service: LLMService, cores: int) -> int:
    """Compute threads of one instance: the machine's cores shared out, at least one."""
    sizes = sizes_of(service.spec)
    return max(1, cores // max(1, sizes.engines + sizes.encode))
