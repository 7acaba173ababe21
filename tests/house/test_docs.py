"""The documentation agrees with the code: links, generated parts, commands, words."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "constraints").glob("*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
DECISION_PARTS = ("## Context", "## Decision", "## Consequences")
POINTER = re.compile(r"`((?:contract|operator|router|engine|cli|tests|bench|docs)/[\w./-]+\.py)(?::([\w.]+))?`")
FORBIDDEN_WORDS = ("handoff", "hand off", "worker instance", "generation id")


def anchors(path):
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_local_link_leads_somewhere(page):
    for link in LINK.findall(page.read_text()):
        if "://" in link or link.startswith("mailto:"):
            continue
        target, _, anchor = unquote(link).partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_named_source_file_and_function_exists(page):
    for name, symbol in POINTER.findall(page.read_text()):
        path = ROOT / name
        assert path.is_file(), name
        if symbol:
            last = symbol.rsplit(".", 1)[-1]
            assert re.search(rf"^\s*(async )?(def|class) {last}\b|^{last}\b", path.read_text(), re.MULTILINE), symbol


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_use_the_words_of_the_glossary(page):
    text = page.read_text().lower()
    allowed = page.name == "glossary.md"
    assert allowed or not [word for word in FORBIDDEN_WORDS if word in text]


@pytest.mark.process
def test_generated_parts_are_up_to_date():
    command = [sys.executable, "-m", "docs.generate", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrun: python -m docs.generate"


def test_every_flag_is_told_with_its_meaning():
    page = (ROOT / "docs" / "configuration.md").read_text()
    rows = re.findall(r"^\| `(--\S+).*?` \| (.*) \|$", page, re.MULTILINE)
    assert {"--role", "--log-requests", "--expose-route"} <= {flag for flag, _ in rows}
    assert [flag for flag, meaning in rows if not meaning] == []


def test_every_make_target_of_the_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test"} <= named <= targets


def test_every_decision_has_a_number_of_its_own_and_the_same_parts():
    decisions = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    numbers = [int(path.name[:4]) for path in decisions]
    assert numbers == list(range(1, len(decisions) + 1))
    for path in decisions:
        text = path.read_text()
        assert all(part in text for part in DECISION_PARTS), path.name


def test_every_page_of_the_documentation_can_be_reached_from_the_readme():
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        reached.add(page)
        for link in LINK.findall(page.read_text()):
            path = (page.parent / unquote(link).partition("#")[0]).resolve()
            if path.suffix == ".md" and path.is_file() and path not in reached:
                todo.append(path)
    assert set(PAGES) <= reached
