"""The model in a JSON body: found, renamed byte-exactly, and refused where two parsers could read two models."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.faults import BadBody
from gateway.proxy.json_model import add_model, decode, locate_model, model_name, replace_model


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"m"}',
        '{"messages":[{"model":"inner"}],"model" : "m"}',
        '{"a":"\\"model\\":\\"x\\"","model":"m"}',
        '{"a":["model",{"model":{"model":1}}],\n\t"model"\n:\t"m","model_":"x"}',
        '{"b":"model","model":"m"}',
        '{"tools":[{"parameters":{"properties":{"model":{"type":"string"}}}}],"model":"m","z":"\\u00e9"}',
        '{"mod\\u0065l":"m"}',
    ],
)
def test_renaming_changes_the_value_alone(body: str) -> None:
    raw = body.encode()
    assert model_name(decode(raw).model) == "m" or "\\u0065" in body
    start, end = locate_model(raw)
    assert raw[start:end] == b'"m"'
    renamed = replace_model(raw, (start, end), 'new"é')
    assert json.loads(renamed) == {**json.loads(raw), "model": 'new"é'}
    assert renamed.startswith(raw[:start])
    assert renamed.endswith(raw[end:])


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ('"max_tokens":5', 5),
        ('"max_completion_tokens":7,"max_tokens":5', 7),
        ('"generationConfig":{"maxOutputTokens":9,"topK":1}', 9),
        ('"max_tokens":5,"generationConfig":{"maxOutputTokens":9}', 5),
        ('"max_tokens":10000000', 1_000_000),
        (f'"max_tokens":1{"0" * 30}', 1_000_000),
        ('"max_completion_tokens":"7","max_tokens":5', 5),
        ('"max_tokens":true,"generationConfig":[9]', None),
        ('"max_tokens":0', None),
        ('"max_tokens":-1', None),
        ('"max_tokens":5.0', None),
        ('"max_tokens":null,"stream":1', None),
        ('"stream":true', None),
    ],
)
def test_the_maximum_of_output_is_read_whatever_else_is_not_as_documented(fields: str, asked: int | None) -> None:
    assert decode(b'{"model":"m",%b}' % fields.encode()).asked_output == asked


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"a","model":"b"}',
        '{"model":"a","mod\\u0065l":"b"}',
        '{"model":"a","Model":"b"}',
        '{"MODEL":"a","model":"b"}',
        '{"model":"a","x":{"model":"c"},"\\u006dodel":"b"}',
        '{"model":"a","\\u004dODEL":"b"}',
    ],
)
def test_two_models_are_refused(body: str) -> None:
    decode(body.encode())
    with pytest.raises(BadBody, match="twice"):
        locate_model(body.encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"model"',
        b"null",
        b'{"model":"a"} {"model":"b"}',
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b'{"model":"\xff"}',
        b'{"a":' * 100_000,
        b'{"model":NaN}',
        b'{"model":"m","max_tokens":1e400}',
        b'{"model":"m","stream":1,"generationConfig":{"maxOutputTokens":-1e400}}',
        b"{'model':'a'}",
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadBody) as caught:
        model_name(decode(body).model)
    assert caught.value.hint


LISTS = b"[" + b"[]," * 700_000 + b"[]]"


@pytest.mark.parametrize(
    "fields",
    [
        b'"model":%b',
        b'"model":"m","stream":%b',
        b'"model":"m","max_tokens":%b',
        b'"model":"m","stream":7,"generationConfig":{"maxOutputTokens":%b}',
        b'"model":"m","stream":7,"generationConfig":{"a":%b}',
    ],
)
def test_nothing_is_made_of_what_is_not_as_documented(fields: bytes) -> None:
    body = b"{%b}" % (fields % LISTS)
    tracemalloc.start()
    try:
        decode(body)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [None, "", 7, [], {}, True, "a" * 257, "a\nb", "a\0"])
def test_what_is_no_model_name_is_refused(value: object) -> None:
    with pytest.raises(BadBody):
        model_name(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["model", "m", '"model"', "\\", "é"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "a", "b"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c", 'q"', "x\\"]), JSON, max_size=4), st.integers(0, 4), st.booleans()
)
def test_any_body_is_renamed_as_a_parser_would(fields: dict[str, Any], at: int, escape: bool) -> None:
    items = list(fields.items())
    items.insert(min(at, len(items)), ("model", "old"))
    body = json.dumps(dict(items), ensure_ascii=escape).encode()
    renamed = replace_model(body, locate_model(body), "new")
    assert json.loads(renamed) == {**dict(items), "model": "new"}


@pytest.mark.parametrize("body", [b"{}", b" {\n}", b'{"a":{"model":1}}', b'\t{ "messages" : [] }'])
def test_a_model_is_added_in_front(body: bytes) -> None:
    added = add_model(body, 'gpt "4"')

    assert json.loads(added) == {"model": 'gpt "4"', **json.loads(body)}
    assert added[slice(*locate_model(added))] == b'"gpt \\"4\\""'
