"""Results of a benchmark, and their place in docs/benchmarks.md."""

import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        what: What was measured, with its setting.
        samples: One value a run, in `unit`.
        unit: For people, such as `µs` or `GB/s`.
        target: What was promised, in words; empty if nothing was.
    """

    what: str
    samples: Sequence[float]
    unit: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The rows of one benchmark."""

    name: str
    title: str
    rows: Sequence[Row]


def machine() -> str:
    """The processor, its usable cores and the interpreter, in words."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        model = found[1].strip() if found else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, Python {platform.python_version()}"


def render(report: Report) -> str:
    """The section of the page: a heading, the command, the machine and a table with median and range."""
    today = datetime.now(UTC).date().isoformat()
    lines = [
        f"### {report.title}",
        "",
        f"`make bench BENCH={report.name}`, {today}, {machine()}.",
        "",
        "| what | median | min to max | runs | target |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in report.rows:
        middle, low, high = statistics.median(row.samples), min(row.samples), max(row.samples)
        spread = f"{low:.4g} to {high:.4g}"
        lines.append(f"| {row.what} | {middle:.4g} {row.unit} | {spread} | {len(row.samples)} | {row.target} |")
    return "\n".join(lines) + "\n"


def replace_section(page: str, name: str, section: str) -> str:
    """The page with the named section replaced, or added at its end."""
    marked = f"<!-- bench:{name} -->\n{section}<!-- /bench -->\n"
    pattern = re.compile(rf"<!-- bench:{re.escape(name)} -->\n.*?<!-- /bench -->\n", re.DOTALL)
    if pattern.search(page):
        return pattern.sub(lambda _: marked, page, count=1)
    return page.rstrip("\n") + "\n\n" + marked
