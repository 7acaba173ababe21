"""The member scan against the json module, and the splice against both."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import json_values
from triptych_contract.errors import BadRequest
from triptych_router.api.parse import Kind, parse
from triptych_router.api.scan import members, splice

spaces = st.text(" \t\r\n", max_size=3)
objects = st.dictionaries(st.text(max_size=8), json_values, max_size=6)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """An object in any layout: spaces anywhere between members, escapes or raw UTF-8."""
    ascii_only = draw(st.booleans())
    compact = draw(st.booleans())
    separators = (",", ":") if compact else (", ", ": ")
    written = [
        json.dumps(name, ensure_ascii=ascii_only)
        + draw(spaces)
        + ":"
        + draw(spaces)
        + json.dumps(value, ensure_ascii=ascii_only, separators=separators, indent=None if compact else 1)
        for name, value in draw(objects).items()
    ]
    inner = (draw(spaces) + "," + draw(spaces)).join(written)
    return (draw(spaces) + "{" + draw(spaces) + inner + draw(spaces) + "}" + draw(spaces)).encode("utf-8", "replace")


@given(body=bodies())
def test_names_and_values_are_those_of_the_json_module(body: bytes) -> None:
    """Each value's bytes decode to the same value; nothing is left out."""
    wanted = json.loads(body, object_pairs_hook=list) if body.strip() != b"{}" else []
    found = list(members(body))
    assert [member.name for member in found] == [name for name, _ in wanted]
    for member, (_, value) in zip(found, wanted, strict=True):
        again = json.loads(body[member.start : member.end], object_pairs_hook=list)
        assert repr(again) == repr(value)


@given(body=bodies(), value=json_values)
def test_a_splice_adds_one_member_and_changes_no_byte(body: bytes, value: object) -> None:
    """Valid JSON with one more pair; the client's bytes are a prefix and a suffix of it."""
    raw = json.dumps(value).encode()
    spliced = splice(body, "kv_transfer_params", raw)
    before = json.loads(body, object_pairs_hook=list) if list(members(body)) else []
    after = json.loads(spliced, object_pairs_hook=list)
    assert repr(after[:-1]) == repr(before)
    assert after[-1][0] == "kv_transfer_params"
    end = body.rindex(b"}")
    assert spliced.startswith(body[:end])
    assert spliced.endswith(body[end:])


@given(data=st.binary(max_size=60) | st.text('{}[]":,\\ a1n', max_size=30).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Never another exception, never a hang."""
    try:
        list(members(data))
    except BadRequest:
        return
    assert data.strip(b" \t\r\n").startswith(b"{")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xef\xbb\xbf{}",
        b'{"a":1}x',
        b'{"a":1,}',
        b'{"a"}',
        b'{"a":',
        b'{"a":"x}',
        b'{"a":[1}',
        b"{1:2}",
        b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b"{" + b",".join(b'"%d":1' % i for i in range(5000)) + b"}",
    ],
    ids=[
        "empty",
        "list",
        "bom",
        "rest",
        "comma",
        "no-value",
        "cut",
        "open-string",
        "open-list",
        "name",
        "deep",
        "many",
    ],
)
def test_what_is_no_sound_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(Kind.COMPLETION, body)


@pytest.mark.parametrize("name", ["kv_transfer_params", "triptych", "kv_transfer_\\u0070arams", "\\u0074riptych"])
def test_members_of_the_hand_over_are_refused_by_name(name: str) -> None:
    for value in ("null", "{}", '{"do_remote_decode":true}'):
        with pytest.raises(BadRequest) as refused:
            parse(Kind.CHAT, f'{{"messages":[],"{name}":{value}}}'.encode())
        assert refused.value.param in ("kv_transfer_params", "triptych")


@pytest.mark.parametrize("name", ["model", "stream", "prompt", "max_tokens", "n", "seed", "echo", "logprobs"])
def test_duplicates_of_members_that_count_are_refused(name: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse(Kind.COMPLETION, f'{{"{name}":null,"x":1,"x":2,"{name}":null}}'.encode())
    assert refused.value.param == name


@pytest.mark.parametrize(
    ("prompt", "prompts", "tokens"),
    [("x" * 402, 1, 100), ([5], 1, 1), ([1, 2, 3], 1, 3), ([[1, 2], [3]], 2, 3), (["ab" * 10, "c" * 40], 2, 15)],
    ids=["text", "one-token", "ids", "lists-of-ids", "texts"],
)
def test_prompts_are_counted(prompt: object, prompts: int, tokens: int) -> None:
    parsed = parse(Kind.COMPLETION, json.dumps({"prompt": prompt}).encode())
    assert parsed.prompts == prompts
    assert abs(parsed.prompt_tokens - tokens) <= 1


@pytest.mark.parametrize(
    ("part", "media"),
    [
        ({"type": "text", "text": "image_url"}, False),
        ({"type": "image_url", "image_url": {"url": "data:"}}, True),
        ({"type": "text", "text": "\u00e9"}, False),
    ],
    ids=["the-word-alone", "an-image", "an-escape"],
)
def test_images_are_told_from_the_word(part: dict[str, object], media: bool) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": [part]}]}).encode()
    assert parse(Kind.CHAT, body).media is media
    hidden = body.replace(b'"type": "image_url"', b'"type": "image\\u005furl"').replace(b'"image_url": {', b'"x": {')
    assert parse(Kind.CHAT, hidden).media is media


def test_values_of_the_wrong_type_name_their_member() -> None:
    for body in (b'{"stream":"yes"}', b'{"n":1.5}', b'{"model":7}', b'{"max_tokens":1e400}', b'{"echo":1}'):
        with pytest.raises(BadRequest) as refused:
            parse(Kind.COMPLETION, body)
        assert refused.value.param == body.split(b'"')[1].decode()


def test_null_stands_for_absent() -> None:
    parsed = parse(Kind.COMPLETION, b'{"model":null,"stream":null,"n":null,"seed":null,"prompt":"a","logprobs":null}')
    assert (parsed.model, parsed.stream, parsed.choices, parsed.seeded) == ("", False, 1, False)
