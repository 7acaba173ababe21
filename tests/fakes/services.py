"""Services and snapshots for tests of the operator's pure core."""

import textwrap

from triptych_contract.instance import InstanceState
from triptych_contract.roles import Phase, Role, Stage
from triptych_operator.spec import LLMService, load_text

HEAD = (
    "apiVersion: triptych.dev/v1alpha1\nkind: LLMService\nmetadata: {name: demo}\nspec:\n  model: {source: 'demo://'}\n"
)


def service(spec: str = "") -> LLMService:
    """A service of the demo model with further spec lines."""
    return load_text(HEAD + textwrap.indent(textwrap.dedent(spec), "  ")).service


def state(name: str, role: Role, *, epoch: int = 1, phase: Phase = Phase.SERVING, percent: int = 100) -> InstanceState:
    """What an instance would answer."""
    return InstanceState(
        id=name,
        incarnation="0" * 32,
        service="demo",
        capable=(Stage.PREFILL, Stage.DECODE),
        role=role,
        epoch=epoch,
        phase=phase,
        loading_percent=percent,
    )
