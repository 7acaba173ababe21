"""What a person sees when a service is ready and when its question is answered."""

import json

from rich.console import Console

from triptych.ask import Proof
from triptych_operator.status import ServiceStatus


def announce(console: Console, status: ServiceStatus, *, model: str, name: str) -> None:
    """Base URL, instances, and how to call it from a shell and from Python."""
    roles = ", ".join(f"{count.ready} {role}" for role, count in status.roles.items())
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    console.print(f"{name} is ready at {status.url}/v1 ({roles})", style="bold", markup=False, highlight=False)
    console.print(
        f"\n  curl {status.url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'\n",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    snippet = (
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{status.url}/v1", api_key="none")',
        f'client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Hello"}}])',
    )
    for line in snippet:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    console.print()
    for field in status.ignored_fields:
        console.print(f"not acted on yet: {field}", style="yellow", markup=False)


def show_proof(console: Console, question: str, proof: Proof) -> None:
    """The answer, who gave it, and the counters of the hand-over."""
    served = ", ".join(f"{stage}={instance}" for stage, instance in proof.answer.served_by.items())
    console.print(f"question: {question}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"answer: {proof.answer.text}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"served by: {served or 'one instance'}", markup=False, highlight=False)
    if proof.handover is not None:
        console.print(
            f"hand-over: blocks_received={proof.handover.blocks_received} "
            f"tokens_recomputed={proof.handover.tokens_recomputed}",
            markup=False,
            highlight=False,
        )
