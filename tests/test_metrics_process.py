"""What Prometheus's own tool has to say against the metrics of a real node."""

from pathlib import Path

from process import NodeProcess, lint, node, number

SETTINGS = """
[[channel]]
match = "ticker.*"
policy = "latest"

[[channel]]
match = "org.7.**"
"""


async def drive(n: NodeProcess) -> None:
    """Something of everything: streams, events, replays, polls, refusals."""
    streams = [await n.open_stream(f"/events/{name}") for name in ("ticker.a", "a")]
    for name in ("ticker.a", "a", "a"):
        await n.publish(name, "x", "y")
    replay = await n.open_stream("/events/a?replay=3")
    await replay.until(b"data: y")
    for path in ("/poll/a?wait=0&lastEventId=earliest", "/nothing", "/stats", "/readyz"):
        await n.get(path)
    await streams[0].transport.aclose()
    await n.until_clients(2)


async def test_promtool_finds_nothing_wrong(tmp_path: Path) -> None:
    settings = tmp_path / "gateway.toml"
    settings.write_text(SETTINGS)
    async with node("--config", str(settings)) as n:
        assert not await lint((await n.get("/metrics")).text)
        await drive(n)
        text = (await n.get("/metrics")).text
        assert not await lint(text)
        assert number(text, 'delivered_total{class="ticker.*"}') == 2
        assert number(text, 'delivery_lag_seconds_count{class="default"}') == 4


async def test_promtool_is_not_easily_pleased() -> None:
    text = "# TYPE gateway_things counter\ngateway_things 1\n"
    assert "should have" in await lint(text)
    assert await lint("nonsense{")
