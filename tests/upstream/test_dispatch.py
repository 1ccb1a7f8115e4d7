"""The driver of `Exchange` over real sockets: what reaches the caller, and that each lease is observed exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

import pytest

from gateway.balancing.decision import Ask, Refusal
from gateway.balancing.exchange import Exchange
from gateway.balancing.hints import Hint, WindowHint
from gateway.balancing.outcome import OutcomeKind, TokenUsage
from gateway.balancing.retry import RetryBudget, RetryPolicy
from gateway.balancing.steps import Failure
from gateway.upstream.chunks import chunks
from gateway.upstream.dispatch import Answer, dispatch
from gateway.upstream.errors import UpstreamBroken
from gateway.upstream.message import Deadlines, Origin, UpstreamRequest
from gateway.upstream.response import UpstreamResponse
from tests.upstream.servers import Chunks, Script, Wire, ok, replying, serving
from tests.upstream.world import world

SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
PACE = b'{"error":{"code":"rate_limit_exceeded"}}'
LIMITED = (
    b"HTTP/1.1 429 Slow down\r\nretry-after: 7\r\nx-ratelimit-remaining-requests: 0\r\n"
    b"x-ratelimit-limit-requests: 60\r\ncontent-length: %d\r\n\r\n%b" % (len(PACE), PACE)
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def text(answer: Answer) -> bytes:
    return b"".join([part async for part in chunks(answer)])


async def test_a_good_answer_is_relayed_and_settled_once() -> None:
    head = b"x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 59\r\n"
    async with world(a=replying(ok(b"fine", head))) as w:
        answer = await w.answer()
        assert (answer.status, answer.kind, await text(answer)) == (200, OutcomeKind.OK, b"fine")
        assert w.leases.learned[0].requests is not None
        assert not w.leases.observed
        await answer.finish(TokenUsage(3, 4))
        await answer.finish(aborted=True)
        assert w.leases.kinds == [("a", OutcomeKind.OK)]
        assert w.leases.observed[0][1].usage == TokenUsage(3, 4)


async def _refuse(wire: Wire) -> None:
    wire.writer.transport.abort()


async def _hang(wire: Wire) -> None:
    await wire.request()
    await wire.gone()


def _in_pieces(*pieces: bytes) -> Script:
    async def script(wire: Wire) -> None:
        await wire.request()
        for piece in pieces:
            await wire.say(piece)
            await asyncio.sleep(0)

    return script


QUOTA = b'{"error":{"type":"insufficient_quota","code":"insufficient_quota"}}'


GEMINI_DAY = json.dumps({
    "error": {
        "code": 429,
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "status": "RESOURCE_EXHAUSTED",
        "details": [
            {
                "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                "violations": [
                    {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "quotaValue": "20"}
                ],
            },
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "36s"},
        ],
    }
}).encode()  # fmt: skip


@pytest.mark.parametrize("head", [b"", b"retry-after: 5\r\nx-ratelimit-limit-requests: 9\r\n"], ids=["bare", "told"])
async def test_what_only_the_body_of_a_refusal_says_is_learned(head: bytes) -> None:
    refusal = b"HTTP/1.1 429 No\r\n%bcontent-length: %d\r\n\r\n%b" % (head, len(GEMINI_DAY), GEMINI_DAY)
    async with world(a=replying(refusal), b=replying(ok(b"fine"))) as w:
        async with await w.answer() as answer:
            assert await text(answer) == b"fine"
            await answer.finish()
        (_, outcome), _ = w.leases.observed
        assert outcome.kind is OutcomeKind.RATE_LIMITED
        assert outcome.hint == Hint(
            5.0 if head else 36.0,
            requests=WindowHint(9) if head else None,
            daily_requests=WindowHint(20, 0),
        )


async def test_the_body_of_an_answer_that_is_no_refusal_says_nothing_of_limits() -> None:
    refusal = b"HTTP/1.1 403 No\r\ncontent-length: %d\r\n\r\n%b" % (len(GEMINI_DAY), GEMINI_DAY)
    async with world(a=replying(refusal), b=replying(ok(b"fine"))) as w:
        async with await w.answer() as answer:
            await answer.finish()
        assert w.leases.observed[0][1].hint is None


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        pytest.param(replying(LIMITED), OutcomeKind.RATE_LIMITED, id="429"),
        pytest.param(
            replying(b"HTTP/1.1 429 No\r\ncontent-length: %d\r\n\r\n" % len(QUOTA) + QUOTA),
            OutcomeKind.AUTH_REJECTED,
            id="quota",
        ),
        pytest.param(replying(b"HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n"), OutcomeKind.AUTH_REJECTED, id="401"),
        pytest.param(replying(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"), OutcomeKind.SERVER_ERROR, id="500"),
        pytest.param(replying(b""), OutcomeKind.SERVER_ERROR, id="closed"),
        pytest.param(replying(ok() + b"content-length: x"), OutcomeKind.OK, id="junk-after-answer"),
        pytest.param(replying(b"junk"), OutcomeKind.SERVER_ERROR, id="junk"),
        pytest.param(
            replying(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"), OutcomeKind.SERVER_ERROR, id="cut-at-head"
        ),
        pytest.param(
            replying(SSE + chunk(b'event: error\ndata: {"error":{"type":"overloaded_error"}}\n\n')),
            OutcomeKind.SERVER_ERROR,
            id="error-event",
        ),
        pytest.param(
            replying(SSE + chunk(b'data: {"error":{"code":"rate_limit_exceeded"}}\n\n')),
            OutcomeKind.RATE_LIMITED,
            id="429-event",
        ),
        pytest.param(replying(SSE + chunk(b'data: {"half')), OutcomeKind.SERVER_ERROR, id="cut-in-first-event"),
        pytest.param(replying(ok(b'{"error":{"code":502,"message":"no"}}')), OutcomeKind.SERVER_ERROR, id="200-error"),
        pytest.param(
            _in_pieces(CHUNKED, chunk(b"\n \n"), chunk(b'{"er'), chunk(b'ror":{"code":429}}'), b"0\r\n\r\n"),
            OutcomeKind.RATE_LIMITED,
            id="200-error-in-pieces",
        ),
        pytest.param(replying(ok(b'{"error":{"code":402}}')), OutcomeKind.AUTH_REJECTED, id="200-no-credits"),
        pytest.param(replying(CHUNKED + chunk(b'  {"error":')), OutcomeKind.SERVER_ERROR, id="200-cut"),
    ],
)
async def test_failures_before_the_first_byte_are_hidden_from_the_caller(script: Script, kind: OutcomeKind) -> None:
    async with world(a=script, b=replying(ok(b"from b"))) as w:
        answer = await w.answer()
        body = await text(answer)
        await answer.finish()
        if kind is OutcomeKind.OK:
            assert (body, w.leases.kinds) == (b"hello", [("a", kind)])
        else:
            assert (body, w.leases.kinds) == (b"from b", [("a", kind), ("b", OutcomeKind.OK)])


async def test_refused_hanging_and_limited_keys_in_one_request() -> None:
    async with serving(_hang) as closed:
        pass
    async with world(b=replying(LIMITED), c=_hang, d=replying(ok(b"at last"))) as w:
        w.origins["a"] = closed.origin
        w.leases.names = ["a", "b", "c", "d"]
        w.deadlines = Deadlines(first_byte_s=0.05)
        answer = await w.answer()
        assert await text(answer) == b"at last"
        await answer.finish()
        assert w.leases.kinds == [
            ("a", OutcomeKind.CONNECT_FAILED),
            ("b", OutcomeKind.RATE_LIMITED),
            ("c", OutcomeKind.TIMEOUT),
            ("d", OutcomeKind.OK),
        ]
        hint = w.leases.observed[1][1].hint
        assert hint is not None
        assert hint.retry_after_s == 7


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_the_caller_s_own_error_is_relayed_unchanged(status: int) -> None:
    body = b'{"error":{"message":"your fault"}}'
    script = replying(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
    async with world(a=script, b=replying(ok())) as w:
        answer = await w.answer()
        assert (answer.status, answer.kind, await text(answer)) == (status, OutcomeKind.CLIENT_ERROR, body)
        await answer.finish()
        assert w.leases.kinds == [("a", OutcomeKind.CLIENT_ERROR)]


async def test_the_last_failure_is_relayed_with_its_whole_body() -> None:
    body = b'{"error":"' + b"x" * 40_000 + b'"}'
    script = replying(b"HTTP/1.1 500 X\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    async with world(a=script, b=script) as w:
        answer = await w.call(max_attempts=2)
        assert isinstance(answer, Answer)
        assert (answer.status, await text(answer)) == (500, body)
        await answer.finish()
        assert w.leases.kinds == [("a", OutcomeKind.SERVER_ERROR), ("b", OutcomeKind.SERVER_ERROR)]


async def test_an_error_under_a_good_status_is_relayed_unchanged_when_no_other_key_helps() -> None:
    body = b'  {"error":{"code":502,"message":"Provider returned error"},"user_id":"u"}'
    async with world(a=replying(ok(body))) as w:
        answer = await w.call(max_attempts=1)
        assert isinstance(answer, Answer)
        assert (answer.status, answer.kind, await text(answer)) == (200, OutcomeKind.SERVER_ERROR, body)
        await answer.finish()
        assert w.leases.kinds == [("a", OutcomeKind.SERVER_ERROR)]


async def test_an_answer_that_rejects_the_key_is_never_relayed() -> None:
    script = replying(b"HTTP/1.1 401 No\r\ncontent-length: 9\r\n\r\nsk-secret")
    async with world(a=script) as w:
        failure = await w.call()
        assert isinstance(failure, Failure)
        assert failure.kind is OutcomeKind.AUTH_REJECTED
        assert w.leases.kinds == [("a", OutcomeKind.AUTH_REJECTED)]


async def test_nothing_is_retried_after_the_first_byte() -> None:
    script = replying(SSE + chunk(b'data: {"id":1}\n\n') + chunk(b"data: mo"))
    async with world(a=script, b=replying(ok())) as w:
        answer = await w.answer()
        assert answer.streaming
        got: list[bytes] = []

        async def relay() -> None:
            while True:
                got.append(await answer.read())

        with pytest.raises(UpstreamBroken):
            await relay()
        assert b"".join(got) == b'data: {"id":1}\n\ndata: mo'
        await answer.finish()
        assert w.leases.kinds == [("a", OutcomeKind.SERVER_ERROR)]


async def test_an_error_event_late_in_the_stream_is_held_against_the_key() -> None:
    async with world(a=replying(SSE + chunk(b'data: {"id":1}\n\n') + b"0\r\n\r\n")) as w:
        answer = await w.answer()
        await text(answer)
        await answer.finish(error=OutcomeKind.SERVER_ERROR)
        assert w.leases.kinds == [("a", OutcomeKind.SERVER_ERROR)]


async def test_stream_chunks_arrive_one_by_one() -> None:
    go = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.say(SSE + chunk(b'data: {"n":1}\n\n'))
        await go.wait()
        await wire.say(chunk(b'data: {"n":2}\n\n') + b"0\r\n\r\n")

    async with world(a=script) as w:
        answer = await w.answer()
        assert await answer.read() == b'data: {"n":1}\n\n'
        go.set()
        assert await answer.read() == b'data: {"n":2}\n\n'
        assert await answer.read() == b""
        await answer.finish()


async def test_a_body_that_cannot_be_sent_again_is_sent_once() -> None:
    async def script(wire: Wire) -> None:
        await wire.reader.readuntil(b"0\r\n\r\n")
        await wire.say(b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n")

    async with world(a=script, b=replying(ok())) as w:
        w.request = UpstreamRequest(b"POST", b"/v1/audio/transcriptions", (), Chunks([b"abc"]))
        answer = await w.answer()
        assert answer.status == 500
        await answer.finish()
        assert w.leases.kinds == [("a", OutcomeKind.SERVER_ERROR)]


@pytest.mark.parametrize("room", [True, False])
async def test_waits_for_capacity_only_where_there_is_room(room: bool) -> None:
    async with world(a=replying(ok(b"later"))) as w:
        w.room = room
        w.leases.waits = 2
        result = await w.call()
        assert len(w.parked) == (2 if room else 1)
        if isinstance(result, Answer):
            assert room
            assert await text(result) == b"later"
            await result.finish()
            assert w.leases.kinds == [("a", OutcomeKind.OK)]
        else:
            assert not room
            assert result.retry_after_s is not None
            assert w.leases.kinds == []


async def test_refused_without_any_attempt() -> None:
    async with world() as w:
        failure = await w.call()
        assert isinstance(failure, Failure)
        assert failure.kind is Refusal.EXHAUSTED


async def _head_only(wire: Wire) -> None:
    await wire.request()
    await wire.say(SSE)
    await wire.gone()


@pytest.mark.parametrize("script", [_hang, _head_only], ids=["before-head", "before-first-event"])
async def test_a_caller_who_leaves_cancels_the_upstream(script: Script) -> None:
    started, gone = asyncio.Event(), asyncio.Event()

    async def watched(wire: Wire) -> None:
        started.set()
        await script(wire)
        gone.set()

    async with world(a=watched, b=replying(ok())) as w:
        task = asyncio.create_task(w.call())
        await started.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 5)
        assert w.leases.kinds == [("a", OutcomeKind.ABANDONED)]


@pytest.mark.parametrize("how", ["finish", "leave", "raise"])
async def test_a_caller_who_leaves_in_the_middle(how: str) -> None:
    gone = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.say(SSE + chunk(b'data: {"n":1}\n\n'))
        await wire.gone()
        gone.set()

    async with world(a=script) as w:
        answer = await w.answer()
        with contextlib.suppress(LookupError):
            async with answer:
                await answer.read()
                if how == "finish":
                    await answer.finish(TokenUsage(1, 1, reported=False), aborted=True)
                if how == "raise":
                    raise LookupError
        await asyncio.wait_for(gone.wait(), 5)
        assert w.leases.kinds == [("a", OutcomeKind.ABANDONED)]


async def test_a_broken_promise_still_gives_the_lease_back() -> None:
    async with world(a=replying(ok())) as w:
        w.request = UpstreamRequest(b"POST", b"no-slash", (), b"")
        with pytest.raises(ValueError, match="origin form"):
            await w.call()
        assert w.leases.kinds == [("a", OutcomeKind.ABANDONED)]


async def test_later_attempts_share_the_time_of_the_first() -> None:
    now = 100.0
    given: list[float] = []

    class Breaking:
        async def send(self, origin: Origin, request: UpstreamRequest, deadlines: Deadlines) -> UpstreamResponse:
            nonlocal now
            given.append(deadlines.total_s)
            now += 4.0
            raise UpstreamBroken("cut")

    async with world() as w:
        w.origins = {name: Origin("http", "127.0.0.1", 1) for name in "abc"}
        w.leases.names, w.deadlines = ["a", "b", "c"], Deadlines(total_s=10.0)
        exchange = Exchange(w.leases, Ask("m"), RetryPolicy(3), RetryBudget(), rng=random.Random(1))
        failure = await dispatch(exchange, w.prepare, Breaking(), clock=lambda: now, park=w.park)
        assert isinstance(failure, Failure)
        assert given == [10.0, 6.0, 2.0]
        assert w.leases.kinds == [(name, OutcomeKind.SERVER_ERROR) for name in "abc"]


async def test_a_thousand_requests_over_a_limited_a_dead_and_a_good_key() -> None:
    async def good(wire: Wire) -> None:
        while True:
            await wire.request()
            await wire.say(ok(b"good"))

    async def limited(wire: Wire) -> None:
        while True:
            await wire.request()
            await wire.say(LIMITED)

    async with serving(_hang) as closed:
        pass
    async with world(b=limited, c=good) as w:
        w.origins["a"] = closed.origin
        w.leases.names = ["a", "b", "c"]
        gate = asyncio.Semaphore(50)

        async def one() -> bytes:
            async with gate:
                answer = await w.answer()
                body = await text(answer)
                await answer.finish()
                return body

        assert await asyncio.gather(*(one() for _ in range(1000))) == [b"good"] * 1000
        assert len(w.leases.kinds) == 3000
