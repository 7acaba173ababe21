"""`python -m docs.generate [--check]`: write the generated parts of the documentation from the code.

A generated part stands between `<!-- generated:NAME -->` and `<!-- /generated -->`. With `--check` nothing is
written; the exit code says whether a part is out of date.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

from triptych_contract import errors, headers
from triptych_contract.metrics import ENGINE, OPERATOR, ROUTER, Kind, Metric
from triptych_contract.roles import PHASES, STAGES

DOCS = Path(__file__).parent
ROOT = DOCS.parent
CONTRACT = ROOT / "contract" / "triptych_contract"
_NEXT_LINE = re.compile(r"^(  -.*)\n {20,}(?=\S)", re.MULTILINE)
"""`argparse` puts the meaning of a long flag on the line below it."""
_NO_DEFAULT = re.compile(r" \(default: (?:None|False|)\)")
_FLAG = re.compile(r"^  (?:-\w, )?(--[\w-]+)(?:, --no-[\w-]+)?(?: (\S.*?))?(?:  +(.*))?$")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown; a bar inside a cell is escaped."""
    lines = [list(head)]
    lines.append(["---"] * len(lines[0]))
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def phases() -> str:
    """The phases of an instance as a diagram."""
    arrows = [f"    {phase} --> {following}: {event}" for (phase, event), following in PHASES.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> loading", *arrows, "```"]) + "\n"


def roles() -> str:
    """Every role and its stages."""
    ordered = [(role, sorted(stages, key=["encode", "prefill", "decode"].index)) for role, stages in STAGES.items()]
    return table(("role", "stages"), [(f"`{role}`", ", ".join(stages) or "none") for role, stages in ordered])


def error_tree() -> str:
    """Every error class."""
    rows = []
    for code, cls in errors.BY_CODE.items():
        meaning = (cls.__doc__ or "").splitlines()[0]
        rows.append((f"`{code}`", str(cls.status), f"`{cls.type}`", "yes" if cls.elsewhere else "", meaning))
    return table(("code", "status", "type", "tried elsewhere", "meaning"), rows)


def metric_tables() -> str:
    """Every metric by program."""
    parts = [("Engine", ENGINE), ("Router", ROUTER), ("Operator", OPERATOR)]
    return "\n".join(f"## {name}\n\n{_metrics(metrics)}" for name, metrics in parts)


def _metrics(metrics: Iterable[Metric]) -> str:
    rows = []
    for metric in metrics:
        name = f"{metric.name}_total" if metric.kind is Kind.COUNTER else metric.name
        rows.append((f"`{name}`", str(metric.kind), ", ".join(f"`{label}`" for label in metric.labels), metric.help))
    return table(("metric", "type", "labels", "meaning"), rows)


def header_table() -> str:
    """Every header of the contract, with the sentence that stands under its name."""
    body = ast.parse((CONTRACT / "headers.py").read_text()).body
    told = {
        node.targets[0].id: following.value.value
        for node, following in pairwise(body)
        if isinstance(node, ast.Assign) and isinstance(following, ast.Expr)
    }
    return table(("header", "meaning"), [(f"`{getattr(headers, name)}`", text) for name, text in told.items()])


def contract_names() -> str:
    """Every public name of the contract by module."""
    rows = []
    for path in sorted(CONTRACT.rglob("*.py")):
        module = ".".join(path.relative_to(CONTRACT).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        names = [name for name in _defined(ast.parse(path.read_text())) if not name.startswith("_")]
        if names:
            rows.append((f"`{module}`" if module else "package", ", ".join(f"`{name}`" for name in names)))
    return table(("module", "public names"), rows)


def _defined(tree: ast.Module) -> list[str]:
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
    return names


def flags(module: str) -> Callable[[], str]:
    """The flags of a program, as its own `--help` tells them."""

    def read() -> str:
        command = [sys.executable, "-c", f"from {module} import run; run()", "--help"]
        environment = os.environ | {"COLUMNS": "1000", "NO_COLOR": "1"}
        text = subprocess.run(  # noqa: S603 the command is our own
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
        ).stdout
        text = _NO_DEFAULT.sub("", _NEXT_LINE.sub(r"\1  ", text))
        found = (match for line in text.splitlines() if (match := _FLAG.match(line)) and match[1] != "--help")
        return table(("flag", "meaning"), [(f"`{' '.join(filter(None, m.group(1, 2)))}`", m[3] or "") for m in found])

    return read


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "architecture.md": {"phases": phases, "roles": roles, "headers": header_table},
    "contract.md": {"contract": contract_names},
    "errors.md": {"errors": error_tree},
    "metrics.md": {"metrics": metric_tables},
    "configuration.md": {
        "triptych-engine": flags("triptych_engine.main"),
        "triptych-router": flags("triptych_router.main"),
    },
}


def filled(page: str, parts: dict[str, Callable[[], str]]) -> str:
    """The page with every generated part in its place; a part without a place is an error."""
    for name, make in parts.items():
        pattern = re.compile(rf"(<!-- generated:{name} -->\n).*?(<!-- /generated -->)", re.DOTALL)
        if not pattern.search(page):
            raise SystemExit(f"no place for the generated part {name}")
        text = make()
        page = pattern.sub(lambda match, text=text: f"{match[1]}{text}{match[2]}", page)
    return page


def main() -> int:
    """Fill every page, or check that it is filled."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, parts in PARTS.items():
        path = DOCS / name
        page = path.read_text()
        if (wanted := filled(page, parts)) == page:
            continue
        stale.append(name)
        if not check:
            path.write_text(wanted)
    if stale:
        print(f"{'out of date' if check else 'written'}: {', '.join(stale)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
