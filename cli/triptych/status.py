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
    held = state.is_held()
    if entry is None:
        raise _nothing_written(state.path.name, held=held)
    found = report(entry, asyncio.run(ask(state, entry.url)), held=held)
    if output == "json":
        print(json.dumps(as_json(found), indent=2))
    else:
        show(found, Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH))
    if not held:
        raise Failure(f"{entry.name} is not running; start it with: triptych up -f {entry.file}", code=NOT_RUNNING)


def _nothing_written(name: str, *, held: bool) -> Failure:
    """An `up` that still looks for its model, or one that ended before it found it."""
    if held:
        return Failure(f"{name} is starting: its model is being looked for or fetched; ask again in a moment")
    return Failure(f"{name} is not running; start it with: triptych up -f FILE", code=NOT_RUNNING)


def show(found: Report, console: Console) -> None:
    """Print a report for a person."""
    service = found.service
    address = found.router.address or "no address yet"
    console.print(f"{service.name}  {service.phase}  {address}  {service.model} ({service.engine})")
    console.print(f"router  {found.router.phase}")
    if not found.instances:
        console.print("no instances yet")
    heads = (
        "instance",
        "role",
        "epoch",
        "phase",
        "address",
        "run",
        "wait",
        "held",
        "cached",
        "blocks",
        "sent",
        "received",
    )
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
    held = f"{blocks.held + blocks.in_transfer}"
    return [
        *(instance.id, instance.role, str(instance.epoch), instance.phase, instance.address),
        *(str(instance.running), str(instance.waiting), held, str(blocks.cached), str(blocks.total)),
        *(str(handover.blocks_sent), str(handover.blocks_received)),
    ]
