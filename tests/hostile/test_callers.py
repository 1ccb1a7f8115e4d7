"""The corpus of hostile callers against the running program: each entry's answers, its end, and who else was touched.

For every entry: each 200 carries the identity of the request in its place; the provider reads nothing but well-formed
requests that the gateway itself made; and the connection, if it stays open, is still in step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.hostile.bodies import BODIES
from tests.hostile.conftest import KEY, Target
from tests.hostile.framing import FRAMING
from tests.hostile.heads import HEADS
from tests.hostile.pace import LEAVERS, PACE
from tests.hostile.pipelines import PIPELINES
from tests.hostile.provider import Provider
from tests.hostile.wire import Answer, Caller, Case, ident, identities, post

AT_ONCE = [*FRAMING, *HEADS, *BODIES, *PIPELINES]
MAY_REACH = {
    b"host", b"accept", b"accept-encoding", b"content-type", b"content-length", b"transfer-encoding", b"user-agent",
    b"authorization", b"idempotency-key", b"openai-beta", b"http-referer", b"x-title",
}  # fmt: skip
"""The headers that a provider may see."""
GROWTH_MIB = 24
LATE_S = 10.0
"""The longest that any slow caller is put up with, all waiting counted."""


def run(case: Case, target: Target) -> list[Answer]:
    """Play one entry, check what came back on its connection, return the answers."""
    caller = Caller(target.port, target.token)
    try:
        caller.run(case.script)
        if case.then == "gone":
            return []
        answers = caller.read_answers(len(case.answers), to_the_end=case.then == "closed")
        assert tuple(answer.status for answer in answers) == case.answers, caller.received[:600]
        assert all(answer.whole for answer in answers), "an answer was cut"
        assert sum(answer.interim for answer in answers) >= case.interim
        for number, answer in enumerate(answers):
            wanted = {ident(f"{case.name} {number}")} if answer.status == 200 else set()
            assert identities(answer.body) <= wanted, "an answer with somebody else's bytes"
            if b"choices" in answer.body:
                assert identities(answer.body) == wanted
        if any(b" HTTP/1.0\r\n" in step for step in case.script if isinstance(step, bytes)):
            assert all(b"transfer-encoding" not in answer.headers for answer in answers), "HTTP/1.0 knows no chunks"
        if case.code:
            assert case.code.encode() in answers[-1].body, answers[-1].body
        if case.then == "open":
            after = ident(f"{case.name}: after")
            already = len(answers)
            assert caller.send(post(after))
            answers = caller.read_answers(already + 1)
            assert len(answers) == already + 1, f"the connection was not kept: {caller.received[-300:]!r}"
            assert answers[-1].status == 200
            assert identities(answers[-1].body) == {after}, "the connection is out of step"
        return answers
    finally:
        caller.close()


def check_provider(case: Case, provider: Provider) -> None:
    """The provider saw as many of this entry's requests as it should have, and nothing that it could not trust."""
    mine = {ident(f"{case.name} {number}") for number in range(max(len(case.answers), 3))}
    seen = [one for one in provider.seen if identities(one.body) & mine]
    assert len(seen) == case.reached
    assert provider.take_violations() == []
    for one in provider.take_new():
        names = {name for name, _ in one.headers}
        assert names <= MAY_REACH, names - MAY_REACH
        assert one.header(b"authorization") == b"Bearer " + KEY.encode()
        assert one.header(b"host") == b"127.0.0.1:%d" % provider.port
        assert one.target in (b"/v1/chat/completions", b"/v1/audio/transcriptions")
        assert b"smuggled" not in one.target
        assert all(b"injected" not in name for name in names)


@pytest.mark.parametrize("case", AT_ONCE, ids=lambda case: case.name)
def test_at_once(case: Case, target: Target) -> None:
    before = target.forget_peak()
    run(case, target)
    check_provider(case, target.provider)
    assert target.peak_mib() - before < GROWTH_MIB


@pytest.fixture(scope="session")
def paced(target: Target) -> Iterator[dict[str, Future[list[Answer]]]]:
    """All slow callers at the same time: they wait, and cost nothing."""
    with ThreadPoolExecutor(len(PACE)) as executor:
        yield {case.name: executor.submit(run, case, target) for case in PACE}


@pytest.mark.parametrize("case", PACE, ids=lambda case: case.name)
def test_in_time(case: Case, target: Target, paced: dict[str, Future[list[Answer]]]) -> None:
    paced[case.name].result(LATE_S)
    check_provider(case, target.provider)


@pytest.mark.parametrize("case", LEAVERS, ids=lambda case: case.name)
def test_who_leaves_is_let_go_of(case: Case, target: Target) -> None:
    left = target.provider.left
    run(case, target)
    if case.reached or "upload" in case.name:
        target.provider.wait_for_departure(left)
    give_up = time.monotonic() + 10
    while target.metric("llm_proxy_in_flight") > 0:
        assert time.monotonic() < give_up, "a request without a caller is still under way"
        time.sleep(0.02)
    check_provider(case, target.provider)


def test_the_program_logged_no_failure_of_its_own(target: Target) -> None:
    lines = [line for line in target.log.read_text().splitlines() if '"level": "error"' in line or "Traceback" in line]
    assert lines == []


def test_names_are_unique() -> None:
    names = [case.name for case in [*AT_ONCE, *PACE, *LEAVERS]]
    assert len(names) == len(set(names))
