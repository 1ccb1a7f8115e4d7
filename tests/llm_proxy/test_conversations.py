"""A conversation stays with the key whose prompt cache is warm, in the SDK as in the gateway."""

from __future__ import annotations

from llm_proxy import LoadBalancer
from tests.fakes.provider import RunningProvider
from tests.llm_proxy.conftest import document


def test_the_turns_of_a_conversation_go_to_one_key(provider: RunningProvider) -> None:
    turns = [{"role": "user", "content": "What is a quota?"}]
    with LoadBalancer(document(provider, "round_robin+cache_affinity")) as balancer:
        keys = set()
        for _ in range(6):
            answer = balancer.complete(model="gpt-4o", messages=turns)
            keys.add(answer.key)
            turns += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "And then?"}]
    assert len(keys) == 1


def test_conversations_spread_over_the_keys(provider: RunningProvider) -> None:
    with LoadBalancer(document(provider, "round_robin+cache_affinity")) as balancer:
        keys = {
            balancer.complete(model="gpt-4o", messages=[{"role": "user", "content": f"Question {number}"}]).key
            for number in range(40)
        }
    assert len(keys) > 1
