"""The threat model's table of lessons: every row names tests, and every one of them exists."""

import ast
import re
from pathlib import Path

import pytest
from aiohttp import http_parser

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "threat-model.md").read_text()
TABLE = PAGE.partition("## Lessons of others")[2].partition("\n## ")[0]
ROWS = [line.strip("| ").split(" | ") for line in TABLE.splitlines() if line.startswith("| ")][2:]
POINTER = re.compile(r"`(tests/[\w/]+\.py):([\w.]+)`")


def defined(path: Path) -> set[str]:
    """Names of classes, their tests, and tests of a module."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}.{method.name}" for method in methods}
    return found


def test_there_are_lessons() -> None:
    assert len(ROWS) >= 15


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_every_lesson_names_tests_that_exist(row: list[str]) -> None:
    assert len(row) == 3
    named = POINTER.findall(row[2])
    assert named
    for path, name in named:
        assert name in defined(ROOT / path), (path, name)
        assert name.rpartition(".")[2].startswith(("test_", "Test"))


def test_http_is_read_by_the_parser_that_is_strict() -> None:
    assert http_parser.HttpRequestParser is not http_parser.HttpRequestParserPy
