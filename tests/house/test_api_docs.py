"""The page for application developers says what the servers do: members, bounds, endpoints."""

import re
from pathlib import Path

import pytest

from triptych_contract.codec import MAX_BODY_BYTES
from triptych_contract.sampling import LIMITS, MAX_PROMPTS, MAX_STOP_CHARACTERS, MAX_STOP_STRINGS, MAX_STOP_TOKEN_IDS
from triptych_engine.server.media import MAX_IMAGE_BYTES, MAX_IMAGES
from triptych_engine.server.parse import MAX_MESSAGES, MAX_TEMPLATE_VARIABLES, ROLES
from triptych_engine.server.unsupported import NEUTRAL

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text()
ROWS = {line.split("|")[1]: line for line in PAGE.splitlines() if line.startswith("| `")}


def row(member: str) -> str:
    """The row of a table that speaks of a member."""
    return next(line for names, line in ROWS.items() if f"`{member}`" in names)


def test_exactly_the_refused_members_are_listed():
    listed = PAGE.split("<!-- unsupported -->")[1].split("<!-- /unsupported -->")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == set(NEUTRAL)


@pytest.mark.parametrize("member", sorted(LIMITS))
def test_every_bounded_member_has_its_row(member):
    low, high = LIMITS[member]
    line = row(member)
    if high < 2**31 - 1 and low >= 0:
        assert f"{high:g}" in line


@pytest.mark.parametrize(
    ("member", "bounds"),
    [
        ("messages", (MAX_MESSAGES, *ROLES)),
        ("prompt", (MAX_PROMPTS,)),
        ("stop", (MAX_STOP_STRINGS, MAX_STOP_CHARACTERS)),
        ("stop_token_ids", (MAX_STOP_TOKEN_IDS,)),
        ("chat_template_kwargs", (MAX_TEMPLATE_VARIABLES,)),
    ],
)
def test_the_bounds_of_a_member_are_those_of_the_code(member, bounds):
    assert [bound for bound in bounds if str(bound) not in row(member)] == []


def test_the_bounds_of_images_and_bodies_are_those_of_the_code():
    assert f"At most {MAX_IMAGES} a request, of {MAX_IMAGE_BYTES >> 20} MiB each" in PAGE
    assert f"at most\n{MAX_BODY_BYTES >> 20} MiB" in PAGE


def test_every_endpoint_of_the_front_door_is_listed():
    source = (ROOT / "router" / "triptych_router" / "api" / "handlers.py").read_text()
    paths = set(re.findall(r'"(/[a-z][\w/{}:.+]*)"', source))
    missing = {path for path in paths if f"{path.replace(':.+', '')}`" not in PAGE}
    assert paths
    assert not missing
