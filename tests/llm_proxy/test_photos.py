"""A photo in a prompt is reserved as a photo, not as the text that its base64 looks like."""

from __future__ import annotations

import base64
import random

import httpx
import pytest

from llm_proxy import LoadBalancer
from tests.fakes.provider import RunningProvider
from tests.llm_proxy.conftest import document

PHOTO = base64.b64encode(random.Random(7).randbytes(1_200_000)).decode()
QUESTION = [
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{PHOTO}"}}]}
]


@pytest.fixture
def narrow(provider: RunningProvider) -> LoadBalancer:
    """Keys that may use 30,000 tokens a minute, of which a photo takes some thousands and its base64 400,000."""
    return LoadBalancer(document(provider, rate_limit={"rpm": 500, "tpm": 30_000}))


def test_a_call_with_a_photo_is_served(narrow: LoadBalancer) -> None:
    with narrow:
        assert narrow.complete(model="gpt-4o", messages=QUESTION).text


def test_so_is_one_of_an_sdk_over_the_transport(narrow: LoadBalancer) -> None:
    with narrow, httpx.Client(transport=narrow.transport()) as client:
        answer = client.post("http://any/v1/chat/completions", json={"model": "gpt-4o", "messages": QUESTION})
    assert answer.status_code == 200, answer.text
