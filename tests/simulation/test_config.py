"""The configuration file: what it accepts, and what it says about the rest."""

from __future__ import annotations

import msgspec
import pytest

from gateway.balancing.quota import Limits
from gateway.simulation.config import KeyConfig, ProviderConfig, development_config, load_config
from gateway.simulation.ledger import Ledger
from gateway.simulation.prompt_cache import PromptCache
from gateway.simulation.text import Prompt, answer, example
from gateway.simulation.wire import Dialect


def test_development_config_has_the_three_keys() -> None:
    config = development_config()
    assert [(key.name, key.limits.rpm) for key in config.keys] == [
        ("primary", 3_000),
        ("secondary", 2_000),
        ("tertiary", 1_000),
    ]
    assert len({key.quota for key in config.keys}) == 3


def test_round_trip() -> None:
    config = development_config()
    assert load_config(msgspec.json.encode(config)) == config


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "truncated"),
        (b"{}", "keys"),
        (b'{"keys":[{"secret":"a","name":"b","rpm":1}]}', "rpm"),
        (b'{"keys":[{"secret":"a","name":"b","style":"x"}]}', "style"),
        (b'{"keys":[{"secret":"a","name":"b"},{"secret":"a","name":"c"}]}', "same `secret`"),
        (b'{"keys":[{"secret":"","name":"b"}]}', "needs a `secret`"),
        (b'{"keys":[],"latency":{"first_byte_s":-1}}', "latencies"),
    ],
)
def test_refuses_with_the_place(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=r"configuration is not usable") as caught:
        load_config(data)
    assert said in str(caught.value)


def test_keys_of_one_organisation_share_its_quota() -> None:
    keys = tuple(
        KeyConfig(secret=f"s{i}", name=f"k{i}", organisation="org-shared", limits=Limits(rpm=2)) for i in range(2)
    )
    ledger = Ledger(ProviderConfig(keys=keys))
    one, other = (ledger.keys[name] for name in ("k0", "k1"))
    assert ledger.quota(one, Dialect.OPENAI) is ledger.quota(other, Dialect.OPENAI)
    assert ledger.quota(one, Dialect.OPENAI) is not ledger.quota(one, Dialect.ANTHROPIC)


def test_a_long_prefix_is_cached_for_its_organisation_and_model_only() -> None:
    cache = PromptCache()
    text = "".join(f"{n:08d}" for n in range(1_000))
    assert cache.look_up("org", "m", text) == 0
    assert cache.look_up("org", "m", text[:6_000] + "other") == 1_408
    assert cache.look_up("org", "n", text) == 0
    assert cache.look_up("elsewhere", "m", text) == 0
    assert cache.look_up("org", "m", "x" + text) == 0
    assert cache.look_up("org", "m", text[:4_000]) == 0


def test_example_fits_a_schema() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "size": {"enum": ["s", "m"]},
            "tags": {"type": "array", "items": {"type": "integer"}},
            "maybe": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        },
    }
    assert example(schema) == {"name": "text", "size": "s", "tags": [1], "maybe": None}


def test_an_answer_has_the_length_asked_for() -> None:
    for tokens in (0, 1, 2, 50):
        assert answer(Prompt("hi"), tokens=tokens).tokens == tokens
    cut = answer(Prompt("hi", max_tokens=5), tokens=50)
    assert cut.truncated
    assert cut.tokens == 5
