"""Good and bad bodies: what is served, and what is refused with the member's name."""

import json
from typing import Any

import pytest

from triptych_contract.errors import BadRequest, Unsupported
from triptych_engine.server.parse import parse_chat, parse_completion

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
TEXT = {"prompt": "hi"}


def body(base: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({**base, **more}).encode()


BAD_NUMBERS = [
    ("n", "0"),
    ("n", "17"),
    ("n", "true"),
    ("n", '"2"'),
    ("n", "9223372036854775808"),
    ("max_tokens", "-1"),
    ("max_tokens", "1.5"),
    ("max_tokens", "0"),
    ("max_tokens", "1e400"),
    ("temperature", "-0.1"),
    ("temperature", "1e400"),
    ("temperature", "true"),
    ("temperature", '"hot"'),
    ("top_p", "1.01"),
    ("top_k", "-2"),
    ("min_p", "2"),
    ("seed", "9223372036854775808"),
    ("seed", "0.5"),
    ("logprobs", "21"),
    ("min_tokens", "-1"),
    ("stop", "[1]"),
    ("stop", '[""]'),
    ("stop", json.dumps(["x"] * 17)),
    ("stop", json.dumps("x" * 1025)),
    ("stop_token_ids", "[-1]"),
    ("stop_token_ids", json.dumps([1] * 65)),
    ("prompt", "[]"),
    ("prompt", '["a", 1]'),
    ("prompt", "[[-1]]"),
    ("prompt", "[true]"),
    ("prompt", "{}"),
    ("stream", "1"),
    ("stream_options", '{"include_usage": true}'),
    ("best_of", "0"),
    ("priority", '"high"'),
]


class TestBadValues:
    @pytest.mark.parametrize(("name", "value"), BAD_NUMBERS, ids=lambda value: str(value)[:24])
    def test_are_refused_with_the_name_of_the_member(self, name: str, value: str) -> None:
        rest = "" if name == "prompt" else '"prompt": "hi", '
        with pytest.raises(BadRequest) as caught:
            parse_completion(f'{{{rest}"{name}": {value}}}'.encode())
        assert caught.value.param == name

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"[]",
            b"null",
            b'{"prompt": "hi"} x',
            b'\xef\xbb\xbf{"prompt": "hi"}',
            b'{"prompt": "\\ud800"}',
            b'{"prompt": "\xff"}',
            b'{"prompt": "hi", "temperature": NaN}',
            b'{"prompt": "hi", "x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
            b"{" + b",".join(b'"k%d":1' % i for i in range(1000)) + b"}",
        ],
        ids=["empty", "list", "null", "trailing", "bom", "surrogate", "utf-8", "nan", "deep", "members"],
    )
    def test_bodies_that_are_no_sound_object_are_refused(self, raw: bytes) -> None:
        with pytest.raises(BadRequest):
            parse_completion(raw)

    @pytest.mark.parametrize(
        "raw",
        [
            b'{"prompt": "a", "n": 1, "n": 1}',
            b'{"prompt": "a", "n": 1, "n": 12}',
            b'{"prompt": "a", "n": 12, "n": 1}',
            b'{"n": 1, "prompt": "a", "\\u006e": 2}',
            b'{"prompt": "a", "prompt": "b"}',
        ],
    )
    def test_a_member_that_stands_twice_is_refused(self, raw: bytes) -> None:
        with pytest.raises(BadRequest, match="twice"):
            parse_completion(raw)

    def test_min_tokens_above_max_tokens_is_refused(self) -> None:
        with pytest.raises(BadRequest) as caught:
            parse_completion(body(TEXT, min_tokens=5, max_tokens=4))
        assert caught.value.param == "min_tokens"


class TestMembersThatAreNotServed:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("response_format", {"type": "json_object"}),
            ("structured_outputs", {"regex": "a"}),
            ("guided_json", {}),
            ("tools", [{"type": "function"}]),
            ("tool_choice", "required"),
            ("logit_bias", {"5": 1}),
            ("frequency_penalty", 0.5),
            ("presence_penalty", -1),
            ("repetition_penalty", 1.1),
            ("prompt_logprobs", 1),
            ("suffix", "x"),
            ("best_of", 2),
            ("chat_template", "{{ messages }}"),
        ],
    )
    def test_are_refused_by_name(self, name: str, value: object) -> None:
        with pytest.raises(Unsupported) as caught:
            parse_chat(body(CHAT, **{name: value}))
        assert caught.value.param == name

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("response_format", {"type": "text"}),
            ("tools", []),
            ("tool_choice", "auto"),
            ("logit_bias", {}),
            ("frequency_penalty", 0),
            ("repetition_penalty", 1.0),
            ("best_of", 1),
            ("skip_special_tokens", True),
            ("unheard_of", {"a": [1, {"b": None}]}),
            ("user", "u-1"),
            ("priority", -3),
        ],
    )
    def test_are_accepted_with_their_neutral_value(self, name: str, value: object) -> None:
        assert parse_chat(body(CHAT, **{name: value})) == parse_chat(body(CHAT))

    def test_echo_with_logprobs_is_refused(self) -> None:
        with pytest.raises(Unsupported):
            parse_completion(body(TEXT, echo=True, logprobs=1))


class TestOddButValid:
    @pytest.mark.parametrize(
        "name",
        ["n", "temperature", "seed", "stop", "logprobs", "stream_options", "max_tokens", "kv_transfer_params", "tools"],
    )
    def test_null_stands_for_absent(self, name: str) -> None:
        assert parse_completion(body(TEXT, **{name: None})) == parse_completion(body(TEXT))

    def test_values_at_their_bounds_are_kept(self) -> None:
        options = parse_completion(body(TEXT, seed=-(2**63), top_k=-1, n=16, temperature=2, top_p=0)).options
        assert (options.seed, options.top_k, options.n, options.temperature, options.top_p) == (-(2**63), -1, 16, 2, 0)

    def test_nothing_is_generated_for_an_echo_of_no_tokens(self) -> None:
        assert parse_completion(body(TEXT, echo=True, max_tokens=0)).options.max_tokens == 0

    def test_the_newer_name_of_the_output_bound_wins(self) -> None:
        assert parse_chat(body(CHAT, max_tokens=5, max_completion_tokens=7)).options.max_tokens == 7

    def test_prompts_come_in_four_forms(self) -> None:
        forms = ["a", ["a", "b"], [1, 2], [[1], [2, 3]]]
        assert [parse_completion(body({"prompt": form})).prompts for form in forms] == [
            ("a",),
            ("a", "b"),
            ((1, 2),),
            ((1,), (2, 3)),
        ]

    def test_developer_is_system_and_text_parts_are_joined(self) -> None:
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        chat = parse_chat(body({"messages": [{"role": "developer", "content": parts}]}))
        assert chat.messages == ({"role": "system", "content": "a\nb"},)
