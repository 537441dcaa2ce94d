"""What /metrics says of token streams and their upstreams."""

import json

import pytest
import trio
from running import Gateway, request, running, until
from scraped import scrape, value
from upstreams import FakeUpstream, Fault, Script, chat, fake_upstream

from gateway.config import Format, Upstream
from gateway.relay.events import UPSTREAM_FAILURES, Complete, Error
from gateway.relay.relays import ENDS, OTHER, REFUSALS, Limits, Plan
from gateway.relay.running import Running

JSON = b"Content-Type: application/json\r\n"


def upstream_of(fake: FakeUpstream, name: str = "fake", **more: object) -> Upstream:
    return Upstream(name, fake.url, Format.OPENAI, **more)  # type: ignore[arg-type]


async def open_one(gateway: Gateway, script: Script | None = None, name: str = "fake") -> int:
    body = json.dumps({"upstream": name, "request": chat(script)}).encode()
    return (await gateway.ask(request("POST", "/streams", JSON, body=body))).status


async def test_every_metric_is_there_from_the_beginning() -> None:
    """For each upstream that is configured, each format, and each word for an end."""
    async with fake_upstream() as fake, running(upstreams=(upstream_of(fake),)) as gateway:
        found = await scrape(gateway)
        token_streams = {
            (name, *(has - {each for each in has if each[0] == "le"})): number
            for (name, has), number in found.items()
            if name.startswith(("gateway_token_stream", "gateway_upstream_"))
        }
        assert set(token_streams.values()) == {0}
        for state, words in ENDS.items():
            for word in words:
                assert value(found, "token_streams_ended_total", state=state, reason=word) == 0
        for code in UPSTREAM_FAILURES:
            assert value(found, "upstream_errors_total", upstream="fake", code=code) == 0
        for reason in REFUSALS:
            assert value(found, "token_streams_refused_total", reason=reason) == 0
        for each in Format:
            assert value(found, "token_streams", format=each) == 0
            assert value(found, "token_streams_opened_total", format=each) == 0
        for name in ("calls_total", "retries_total"):
            assert value(found, f"upstream_{name}", upstream="fake") == 0
        assert value(found, "token_streams_first_token_seconds_count", upstream="fake") == 0


async def test_a_node_without_upstreams_has_none_by_name() -> None:
    async with running(demo=False) as gateway:
        found = await scrape(gateway)
        assert not [name for name, _ in found if name.startswith("gateway_upstream_")]
        assert value(found, "token_streams") == 0


async def test_what_becomes_of_streams_is_counted() -> None:
    async with (
        fake_upstream() as fake,
        running(upstreams=(upstream_of(fake, max_streams=3, retries=1),)) as gateway,
    ):
        ended = gateway.node.relays.statistics

        async def until_ended(count: int) -> None:
            await until(
                lambda: sum(map(sum, (w.values() for w in ended().ended.values()))) == count
            )

        assert await open_one(gateway, Script(words=7)) == 201
        await until_ended(1)
        assert await open_one(gateway, Script(fault=Fault.ERROR, after=3)) == 201
        await until_ended(2)
        assert await open_one(gateway, Script(status=429, retry_after="0")) == 201
        await until_ended(3)
        body = json.dumps({"upstream": "fake", "request": chat(Script(words=9, rate=1.0))}).encode()
        opened = await gateway.ask(request("POST", "/streams", JSON, body=body))
        for _ in range(2):
            assert await open_one(gateway, Script(fault=Fault.NO_ANSWER, after=0)) == 201
        assert await open_one(gateway) == 503
        found = await scrape(gateway)
        assert value(found, "token_streams", format="openai") == 3
        assert value(found, "token_streams_refused_total", reason="upstream") == 1
        assert value(found, "token_stream_leases") == 3
        assert value(found, "token_stream_records") == 6
        stopped = await gateway.ask(request("DELETE", f"/streams/{opened.json['id']}"))
        assert stopped.status == 200
        await until_ended(4)
        found = await scrape(gateway)
        assert value(found, "token_streams") == 2
        assert value(found, "token_streams_opened_total", format="openai") == 6
        assert value(found, "token_streams_ended_total", state="complete", reason="end") == 1
        assert value(found, "token_streams_ended_total", state="stopped", reason="stopped") == 1
        assert value(found, "token_streams_ended_total", state="error") == 2
        for code in ("upstream-error", "rate-limited"):
            assert value(found, "token_streams_ended_total", state="error", reason=code) == 1
        assert value(found, "token_streams_first_token_seconds_count", upstream="fake") >= 2
        assert 7 <= value(found, "token_streams_tokens_total") <= 7 + 3 + 9
        await until(lambda: gateway.node.upstreams.statistics()["fake"].calls == 7)
        found = await scrape(gateway)
        assert value(found, "upstream_calls_total", upstream="fake") == 7
        assert value(found, "upstream_retries_total", upstream="fake") == 1
        assert value(found, "upstream_errors_total", upstream="fake") == 3
        assert value(found, "upstream_errors_total", code="rate-limited") == 2
        assert value(found, "upstream_errors_total", code="upstream-error") == 1
        gateway.node.relays.leaving = True
        assert await open_one(gateway, Script()) == 503


async def test_an_upstream_that_is_not_there_fails_by_its_own_name() -> None:
    async with fake_upstream() as fake, fake_upstream(listening=False) as away:
        two = (upstream_of(fake), upstream_of(away, "away", retries=0))
        async with running(upstreams=two) as gateway:
            for name in ("away", "fake"):
                assert await open_one(gateway, Script(words=2), name) == 201
            await until(lambda: not gateway.node.relays.running)
            found = await scrape(gateway)
            assert value(found, "upstream_errors_total", upstream="away", code="refused") == 1
            assert value(found, "upstream_errors_total", upstream="fake") == 0
            assert value(found, "token_streams_first_token_seconds_count", upstream="away") == 0
            assert value(found, "token_streams_first_token_seconds_count", upstream="fake") == 1


@pytest.mark.parametrize(
    ("last", "state"),
    [
        (Complete('x"} 1\nforged'), "complete"),
        (Error("forged", "...", retryable=False), "error"),
    ],
    ids=["reason", "code"],
)
async def test_words_of_others_count_as_other(last: Complete | Error, state: str) -> None:
    async def produce(stream: Running) -> Complete:
        stream.stop(last)
        await trio.sleep_forever()
        raise AssertionError

    async with running() as gateway:
        relays = gateway.node.relays
        await relays.begin(Plan(produce, Limits(10, 10.0, 1000), Format.SSE))
        await until(lambda: not relays.running)
        found = await scrape(gateway)
        assert value(found, "token_streams_ended_total", state=state, reason=OTHER) == 1
        assert value(found, "token_streams_ended_total") == 1


async def test_a_limit_of_ours_is_no_error_of_the_upstream() -> None:
    async with (
        fake_upstream() as fake,
        running(upstreams=(upstream_of(fake, max_tokens=3),)) as gateway,
    ):
        assert await open_one(gateway, Script(words=9)) == 201
        await until(lambda: not gateway.node.relays.running)
        found = await scrape(gateway)
        assert value(found, "token_streams_ended_total", reason="limit-tokens") == 1
        assert value(found, "upstream_errors_total") == 0
