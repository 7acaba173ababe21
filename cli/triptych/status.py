"""`triptych status`: what a service is made of and how it is."""

import asyncio
import json
import sys

from rich.console import Console
from rich.table import Table

from triptych.failure import NOT_RUNNING, Failure
from triptych.find import named
from triptych.live import InstanceView, Report, as_json, ask, report

PLAIN_WIDTH = 160
"""Columns where no terminal says how many it has: every row stays on one line."""


def status(name: str | None, output: str) -> None:
    """Print the status of a service; without a running one the command fails with code 3."""
    if output not in ("text", "json"):
        raise Failure("write -o text or -o json", code=2)
    state = named(name)
    entry = state.entry()
    if entry is None:
        raise Failure(f"{state.path.name} has not started yet; see: triptych up", code=NOT_RUNNING)
    held = state.is_held()
    found = report(entry, asyncio.run(ask(state, entry.url)), held=held)
    if output == "json":
        print(json.dumps(as_json(found), indent=2))
    else:
        show(found, Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH))
    if not held:
        raise Failure(f"{entry.name} is not running; start it with: triptych up -f {entry.file}", code=NOT_RUNNING)


def show(found: Report, console: Console) -> None:
    """Print a report for a person."""
    service = found.service
    console.print(f"{service.name}  {service.phase}  {found.router.address}  {service.model} ({service.engine})")
    console.print(f"router  {found.router.phase}")
    heads = ("instance", "role", "epoch", "phase", "address", "run", "wait", "blocks", "sent", "received")
    table = Table(*heads, box=None, pad_edge=False)
    for instance in found.instances:
        table.add_row(*_row(instance))
    console.print(table)
    if found.waiting_for:
        console.print(f"waiting for: {found.waiting_for}", markup=False)
    if found.ignored_fields:
        console.print(f"not acted on yet: {', '.join(found.ignored_fields)}", markup=False)


def _row(instance: InstanceView) -> list[str]:
    blocks, handover = instance.blocks, instance.handover
    used = f"{blocks.held + blocks.in_transfer}+{blocks.cached} of {blocks.total}"
    return [
        *(instance.id, instance.role, str(instance.epoch), instance.phase, instance.address),
        *(str(instance.running), str(instance.waiting), used),
        *(str(handover.blocks_sent), str(handover.blocks_received)),
    ]
