"""Type checkers of programs that use the SDK see all of it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import assert_type

import pytest

import llm_proxy
from llm_proxy import Completion, CompletionChunk, LoadBalancer, Message, MessageEvent, Stream
from tests.llm_proxy.conftest import HELLO


def test_every_public_name_comes_from_a_package_marked_as_typed() -> None:
    packages = {getattr(llm_proxy, name).__module__.partition(".")[0] for name in llm_proxy.__all__}
    unmarked = {each for each in packages if not _marker(each).is_file()}
    assert not unmarked, "PEP 561: without py.typed its types are Any to whoever imports them"


def _marker(package: str) -> Path:
    importlib.import_module(package)
    file = sys.modules[package].__file__
    assert file is not None
    return Path(file).with_name("py.typed")


@pytest.mark.parametrize("stream", [False, True])
def test_a_variable_may_say_whether_an_answer_is_streamed(balancer: LoadBalancer, stream: bool) -> None:
    answer = balancer.complete(model="gpt-4o", messages=HELLO, stream=stream)
    assert_type(answer, Completion | Stream[CompletionChunk])
    message = balancer.messages(model="claude-sonnet-5", messages=HELLO, max_tokens=9, stream=stream)
    assert_type(message, Message | Stream[MessageEvent])
    for each in (answer, message):
        assert isinstance(each, Stream) is stream
        if isinstance(each, Stream):
            each.close()
