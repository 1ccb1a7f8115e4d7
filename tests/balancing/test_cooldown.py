"""How long a quota rests after refusals: named cases."""

from __future__ import annotations

from gateway.balancing.cooldown import ALONE_S, BELIEVED, BLIND_COOLDOWN_S, Cooldown
from gateway.balancing.hints import Hint

SOON = Hint(retry_after_s=0.1)


def test_refusals_of_one_burst_are_one_strike() -> None:
    rest = Cooldown()
    assert [rest.refused(None, 0.0, 0.1 + each / 100) for each in range(10)] == [True] + [False] * 9
    assert (rest.strikes, rest.limited) == (1, 10)
    assert rest.until == 0.19 + BLIND_COOLDOWN_S


def test_after_a_refusal_that_told_nothing_one_goes_alone() -> None:
    rest = Cooldown()
    rest.refused(None, 0.0, 0.0)
    rest.sent(1.0)
    assert rest.until == 1.0 + ALONE_S
    rest.sent(1.0 + ALONE_S)
    assert rest.until == 1.0 + ALONE_S
    assert rest.strikes == 0


def test_a_success_lets_the_others_follow_at_once() -> None:
    rest = Cooldown()
    rest.refused(None, 0.0, 0.0)
    rest.sent(1.0)
    rest.succeeded()
    assert rest.until <= 1.0


def test_a_late_success_does_not_end_a_rest_that_nobody_tried() -> None:
    rest = Cooldown()
    rest.refused(None, 0.0, 0.0)
    rest.succeeded()
    assert rest.until == BLIND_COOLDOWN_S


def test_the_next_refusal_rests_twice_as_long() -> None:
    rest = Cooldown()
    rest.refused(None, 0.0, 0.0)
    rest.sent(1.0)
    rest.refused(None, 1.0, 1.1)
    assert rest.until == 1.1 + 2 * BLIND_COOLDOWN_S
    rest.refused(None, 2.0, 2.1)
    assert rest.until == 2.1 + 4 * BLIND_COOLDOWN_S


def test_told_delays_are_believed_a_few_times_only() -> None:
    rest = Cooldown()
    for each in range(BELIEVED):
        rest.refused(SOON, float(each), each + 0.1)
        assert rest.until == each + 0.1 + 0.1
    rest.refused(SOON, 10.0, 10.1)
    assert rest.until == 10.1 + 2 * BLIND_COOLDOWN_S
    rest.succeeded()
    rest.refused(SOON, 20.0, 20.1)
    assert rest.until == 20.1 + 0.1
