"""The client for browsers, in a real one, against real nodes."""

from chromium import chromium
from process import node
from proxy import proxy_to


async def test_a_page_gets_what_is_published_over_a_cut_link() -> None:
    async with node("--retry", "0.1") as n, proxy_to(n) as proxy, chromium() as browser:
        tab = await browser.tab(proxy.url)
        await tab.run(
            """async () => {
                const { connect } = await import("/client.js");
                window.heard = [];
                window.told = [];
                window.stream = connect({ url: "/events", channels: ["a"], minDelay: 50 });
                for (const name of ["open", "gap", "reconnecting", "end", "error"]) {
                    stream.when(name, (detail) => told.push([name, detail]));
                }
                stream.on("message", (event) => heard.push(event.data));
            }"""
        )
        await tab.until_true("() => stream.state.status === 'open'")
        await n.publish("a", "1", "2")
        await tab.until_true("() => heard.length === 2")
        proxy.cut()
        await n.publish("a", "3", "4")
        proxy.let_through()
        await n.publish("a", "5")
        await tab.until_true("() => heard.length >= 5")
        assert await tab.run("() => heard") == ["1", "2", "3", "4", "5"]
        names = [name for name, _ in await tab.run("() => told")]
        assert names == ["open", "reconnecting", "open"]
        position = await tab.run("() => stream.subscribe('b')")
        await n.publish("b", "6")
        await tab.until_true("() => heard.length >= 6")
        assert position.count("-") == 1
