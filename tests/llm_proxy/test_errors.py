"""Exceptions as values: they pass between processes whole, and tell when trying again makes sense."""

from __future__ import annotations

import copy
import json
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from auth.secret import Secret
from gateway.balancing.outcome import OutcomeKind
from llm_proxy import (
    AllKeysRejected,
    ConfigurationError,
    InvalidRequest,
    LLMProxyError,
    LoadBalancer,
    ProviderError,
    ProviderUnreachable,
    RateLimited,
    Timeout,
)
from llm_proxy.failures import provider_error

ERRORS = [
    ConfigurationError([("/name", "is empty"), ("", "is wrong")]),
    InvalidRequest("No.", hint="Mend it."),
    RateLimited("Full.", hint="Wait.", retry_after_s=2.5),
    AllKeysRejected("None."),
    Timeout("Late.", hint="Again."),
    ProviderUnreachable("Away.", partial=True),
    ProviderError("500.", status=500, body="{}", key="primary", provider="openai"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("again", [lambda each: pickle.loads(pickle.dumps(each)), copy.copy, copy.deepcopy])
def test_what_is_pickled_or_copied_is_the_same(error: LLMProxyError, again: object) -> None:
    assert callable(again)
    made = again(error)
    assert (type(made), str(made), made.args, vars(made)) == (type(error), str(error), error.args, vars(error))


def refused() -> None:
    LoadBalancer({"providers": []})


def test_a_workers_error_reaches_its_parent() -> None:
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as workers,
        pytest.raises(ConfigurationError, match="list at least one key"),
    ):
        workers.submit(refused).result()


NOW = 1_784_000_000.0


@pytest.mark.parametrize(
    ("headers", "message", "expected"),
    [
        ([(b"retry-after", b"7")], "", 7.0),
        ([(b"retry-after", b"7"), (b"retry-after-ms", b"6500")], "", 6.5),
        ([(b"retry-after", b"Tue, 14 Jul 2026 03:34:00 GMT")], "", 40.0),
        ([(b"retry-after", b"86400")], "", 3600.0),
        ([(b"retry-after", b"-1")], "", None),
        ([], "Rate limit reached. Please try again in 644ms.", 0.644),
        ([], "Slow down.", None),
    ],
)
def test_when_to_come_back_is_what_the_provider_said(
    headers: list[tuple[bytes, bytes]], message: str, expected: float | None
) -> None:
    body = json.dumps({"error": {"message": message}}).encode()
    error = provider_error(
        OutcomeKind.RATE_LIMITED,
        429,
        body,
        headers=headers,
        now_unix=NOW,
        key="primary",
        provider="openai",
        secret=Secret("sim-key-primary"),
    )
    assert isinstance(error, RateLimited)
    assert error.retry_after_s == (None if expected is None else pytest.approx(expected))
