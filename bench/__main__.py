"""`python -m bench [--list] [--dry-run] [NAME ...]`: run benchmarks and write their rows into docs/benchmarks.md.

A benchmark is a module of this folder with a docstring, whose first line is its title, and a function
`run() -> list[Row]`. Its rows stand in docs/benchmarks.md between `<!-- bench:NAME -->` and `<!-- /bench -->`.
"""

import argparse
import importlib
import sys
from pathlib import Path

from bench.report import Report, render, replace_section

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "benchmarks.md"
HELPERS = {"__main__", "report"}


def names() -> list[str]:
    """All benchmarks, in order of name."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in HELPERS and path.stem[0] != "_")


def title(name: str) -> str:
    """The first line of a benchmark's docstring."""
    return (importlib.import_module(f"bench.{name}").__doc__ or name).splitlines()[0].rstrip(".")


def run(name: str) -> str:
    """Run one benchmark; its section of the page."""
    rows = importlib.import_module(f"bench.{name}").run()
    return render(Report(name=name, title=title(name), rows=rows))


def main() -> int:
    """Run what the command line names, everything if it names nothing."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run; all if none is named")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and stop")
    parser.add_argument("--dry-run", action="store_true", help="print the results and leave the page as it is")
    arguments = parser.parse_args()
    if arguments.list:
        for name in names():
            print(f"{name:24} {title(name)}")
        return 0
    unknown = sorted(set(arguments.names) - set(names()))
    if unknown:
        print(f"no such benchmark: {', '.join(unknown)}; --list shows them", file=sys.stderr)
        return 2
    for name in arguments.names or names():
        section = run(name)
        print(section, flush=True)
        if not arguments.dry_run:
            PAGE.write_text(replace_section(PAGE.read_text(), name, section))
    return 0


if __name__ == "__main__":
    sys.exit(main())
