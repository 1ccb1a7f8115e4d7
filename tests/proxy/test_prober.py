"""Keys that were taken out come back by a probe, and are not asked without end."""

from __future__ import annotations

from gateway.proxy.prober import Prober
from tests.fakes.provider import provider_config, running_provider
from tests.proxy.harness import Gateway, key, pool, running_gateway, tenant

EMBED = {"model": "text-embedding-3-small", "input": "x"}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def out_of_service(gateway: Gateway) -> list[str]:
    return next(iter(gateway.directory)).pools["main"].balancer.out_of_service()


async def test_a_rejected_key_is_probed_until_it_is_well() -> None:
    with running_provider(provider_config(a=10_000)) as provider:
        async with running_gateway(tenant(pool("main", key("a", provider.base_url)))) as gateway:
            clock = Clock()
            prober = Prober(gateway.directory, gateway.upstream, clock=clock, first_s=5)
            provider.revoke("a")
            assert (await gateway.call("/v1/embeddings", EMBED)).status == 503
            assert out_of_service(gateway)
            await prober.round()
            assert prober.probes == 0, "not at once: whoever rejected it has just done so"
            clock.now = 5
            await prober.round()
            await prober.round()
            assert (prober.probes, prober.revived) == (1, 0)
            provider.restore("a")
            clock.now = 14
            await prober.round()
            assert prober.probes == 1, "the second wait is twice as long"
            clock.now = 15
            await prober.round()
            assert (prober.probes, prober.revived) == (2, 1)
            assert not out_of_service(gateway)
            assert (await gateway.call("/v1/embeddings", EMBED)).status == 200


async def test_a_provider_that_is_away_stays_out() -> None:
    async with running_gateway(tenant(pool("main", key("a", "http://127.0.0.1:1")))) as gateway:
        clock = Clock()
        prober = Prober(gateway.directory, gateway.upstream, clock=clock, first_s=1)
        while not out_of_service(gateway):
            assert (await gateway.call("/v1/embeddings", EMBED)).status in {502, 503}
        await prober.round()
        clock.now = 1
        await prober.round()
        assert (prober.probes, prober.revived) == (1, 0)
        assert out_of_service(gateway)


async def test_a_pool_may_have_its_idle_keys_checked_at_an_interval() -> None:
    with running_provider(provider_config(a=10_000, b=10_000)) as provider:
        keys = key("a", provider.base_url), key("b", provider.base_url)
        async with running_gateway(tenant(pool("main", *keys, settings={"health_check_s": 30}))) as gateway:
            clock = Clock()
            prober = Prober(gateway.directory, gateway.upstream, clock=clock, first_s=5)
            await prober.round()
            assert prober.checks == 0, "the first checks are spread over the interval"
            clock.now = 30
            await prober.round()
            await prober.round()
            assert (prober.checks, prober.probes) == (2, 0)
            provider.revoke("b")
            clock.now = 60
            await prober.round()
            assert prober.checks == 4
            assert len(out_of_service(gateway)) == 1, "found out without a caller's request"
            provider.restore("b")
            for now in (61, 67):
                clock.now = now
                await prober.round()
            assert prober.revived == 1
            assert not out_of_service(gateway)


async def test_three_failed_checks_in_a_row_open_the_breaker() -> None:
    snapshot = tenant(pool("main", key("a", "http://127.0.0.1:1"), settings={"health_check_s": 1}))
    async with running_gateway(snapshot) as gateway:
        clock = Clock()
        prober = Prober(gateway.directory, gateway.upstream, clock=clock)
        opened = []
        for now in range(5):
            clock.now = float(now)
            await prober.round()
            opened.append(bool(out_of_service(gateway)))
        assert opened == [False, False, False, True, True]
