"""Bodies of very many values are told from their bytes; long texts are not mistaken for them."""

import json
import time

import pytest

from triptych_contract.errors import BadRequest
from triptych_contract.json_bounds import MAX_ITEMS, MAX_NODES, check_json_bounds


@pytest.mark.parametrize(
    "data",
    [
        b'["' + b'","'.join([b"a"] * (MAX_NODES + 1)) + b'"]',
        b"[" + b",".join([b"{}"] * MAX_NODES) + b"]",
        b"[" * (MAX_NODES + 1),
        b"[" + b"1," * (MAX_ITEMS + 1) + b"1]",
        b'["a,", ' + b"1," * (MAX_ITEMS + 1) + b"1]",
        b"{" + b",".join(b'"%d":1' % i for i in range(MAX_NODES)) + b"}",
    ],
    ids=["texts", "objects", "depth", "numbers", "numbers after a text", "members"],
)
def test_more_values_than_any_request_has_are_refused(data: bytes) -> None:
    with pytest.raises(BadRequest):
        check_json_bounds(data)


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "[{,}]" * 500_000},
        {"prompt": '"[{,' * 300_000},
        {"prompt": list(range(500_000))},
        {"prompt": '\\"\\' * 300_000},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a, b"}] * 2}] * 4096},
    ],
    ids=["brackets in a text", "quotes in a text", "token ids", "escapes", "messages"],
)
def test_large_requests_pass(value: object) -> None:
    check_json_bounds(json.dumps(value).encode())


def test_a_text_of_quotes_that_never_ends_is_passed_once() -> None:
    began_s = time.process_time()
    check_json_bounds(b'"' + b'\\"' * 4_000_000)
    assert time.process_time() - began_s < 2
