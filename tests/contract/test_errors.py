"""One tree of errors: each class has one code, one status and the OpenAI body; the docstring draws all of it."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych_contract import errors
from triptych_contract.errors import BY_CODE, Internal, NoInstance, TriptychError, from_code, parse_error

CLASSES = list(BY_CODE.values())
OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    408: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def drawn_tree():
    """Name, status, code and depth of each class, as the module's docstring draws them."""
    line = re.compile(r"^([ │├└─]+)(\w+) (\d{3}) (\w+)", re.MULTILINE)
    return [(m[2], int(m[3]), m[4], (len(m[1]) - 4) // 4) for m in line.finditer(errors.__doc__)]


def subclasses(base):
    return [found for child in base.__subclasses__() for found in (child, *subclasses(child))]


def test_the_docstring_draws_exactly_the_classes_that_exist():
    classes = [(cls.__name__, cls.status, cls.code, len(cls.__mro__) - 4) for cls in subclasses(TriptychError)]
    assert drawn_tree() == classes


def test_a_code_belongs_to_one_class():
    assert len(CLASSES) == len(subclasses(TriptychError))
    assert all(BY_CODE[cls.code] is cls for cls in CLASSES)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_has_the_openai_body(cls):
    error = cls("A sentence.", param="seed")
    assert json.loads(error.json()) == {
        "error": {"message": "A sentence.", "type": OPENAI_TYPES[cls.status], "param": "seed", "code": cls.code}
    }
    assert set(json.loads(cls("x").json())["error"]) == {"message", "type", "param", "code"}
    assert error.headers() == {}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_survives_the_wire(cls):
    found = parse_error(cls("A sentence.", param="seed").json())
    assert type(found) is cls
    assert (found.message, found.param) == ("A sentence.", "seed")


@pytest.mark.parametrize(("wait_ms", "seconds"), [(0, "1"), (1, "1"), (1000, "1"), (1001, "2"), (30_000, "30")])
def test_retry_after_is_told_in_whole_seconds_rounded_up_and_in_milliseconds(wait_ms, seconds):
    headers = NoInstance("None.", retry_after_ms=wait_ms).headers()
    assert headers == {"retry-after": seconds, "retry-after-ms": str(wait_ms)}


def test_only_errors_that_another_instance_may_not_have_are_tried_elsewhere():
    elsewhere = {cls.code for cls in CLASSES if cls.elsewhere}
    assert elsewhere == {"moved", "handover_refused", "overloaded", "not_ready"}


@pytest.mark.parametrize("code", [None, "", "no_such_code", "internal_error"])
def test_an_unknown_code_is_an_internal_error(code):
    assert type(from_code(code, "x")) is Internal


NOT_ERRORS = {
    "empty": b"",
    "not JSON": b"<html>",
    "another object": b'{"detail": "x"}',
    "a string": b'{"error": "x"}',
    "no message": b'{"error": {"type": "x"}}',
    "not UTF-8": b'{"error": {"message": "\xff", "type": "x"}}',
    "nested": b'{"error":' * 50_00,
    "too long": b'{"error": {"message": "' + b"x" * 70_000 + b'", "type": "x"}}',
}


@pytest.mark.parametrize("body", NOT_ERRORS.values(), ids=NOT_ERRORS.keys())
def test_what_is_no_error_body_is_none(body):
    assert parse_error(body) is None


def test_a_body_with_a_number_as_its_code_is_read():
    found = parse_error(b'{"error": {"message": "no such model", "type": "NotFoundError", "code": 404}}')
    assert (type(found), found.message) == (Internal, "no such model")


@given(body=st.binary(max_size=100))
def test_random_bytes_are_no_error_body(body):
    assert parse_error(body) is None
