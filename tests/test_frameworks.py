"""The client in React, Vue and Svelte, in a real browser and against a real node.

What Vue and Svelte take is in the documentation of the client, and is run as it stands there.
"""

import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from chromium import Chromium, Tab, chromium
from node_js import JAVASCRIPT, STATIC
from playwright.async_api import Route
from process import NodeProcess, environment, eventually, node

ESBUILD = JAVASCRIPT / "node_modules" / ".bin" / "esbuild"
HTML = """<!doctype html><link rel=icon href=data:,><body></body>
<script type=module src=app.js></script>"""
README = (STATIC / "README.md").read_text("utf-8")


async def bundle(app: Path) -> bytes:
    """A program and all that it imports, as one module."""
    command = (
        *(str(ESBUILD), str(app), "--bundle", "--format=esm", "--log-level=warning"),
        f"--alias:sse-gateway-client={STATIC}",
        '--define:process.env.NODE_ENV="development"',  # where StrictMode is strict
        "--define:__VUE_OPTIONS_API__=true",
    )
    found = environment(NODE_PATH=str(JAVASCRIPT / "node_modules"))
    done = await trio.run_process(
        command, capture_stdout=True, stderr=subprocess.STDOUT, env=found, check=False
    )
    assert done.returncode == 0, done.stdout.decode()
    return done.stdout


def documented(name: str, directory: Path, module: str) -> None:
    """Write what the documentation shows for ``name`` into a module."""
    (code,) = re.findall(rf"<!-- {name} -->\n```js\n(.*?)```", README, re.DOTALL)
    assert code.count("\n") <= 18
    (directory / module).write_text(code, "utf-8")


@asynccontextmanager
async def page(browser: Chromium, n: NodeProcess, app: Path) -> AsyncIterator[Tab]:
    """A page of the node's origin that runs ``app``."""
    script = await bundle(app)

    async def serve(route: Route) -> None:
        is_page = route.request.url.endswith("/app")
        kind = "text/html" if is_page else "text/javascript"
        await route.fulfill(body=HTML if is_page else script, content_type=kind)

    tab = await browser.tab()
    await tab.do(lambda page: page.route(re.compile(r"/app(\.js)?$"), serve))
    await tab.open(f"{n.url}/app")
    yield tab
    assert tab.errors == []


async def clients_of(n: NodeProcess, channel: str) -> int:
    return int((await n.get(f"/channels/{channel}")).json()["clients"])


async def until_clients(n: NodeProcess, channel: str, count: int) -> None:
    async def are() -> bool:
        return await clients_of(n, channel) == count

    await eventually(are)


async def test_components_of_react_share_a_stream_and_show_what_they_select() -> None:
    async with (
        node() as n,
        chromium() as browser,
        page(browser, n, JAVASCRIPT / "react_app.mjs") as tab,
    ):
        await tab.until_true("() => Boolean(window.show)")
        await tab.run("() => show('price', 'log', 'other')")
        for name in ("price", "log", "other"):
            await tab.until(f"#{name}", r"\|open\|$")
        await n.publish_raw("a", "1", event="price")
        await n.publish_raw("b", "2")
        await n.publish_raw("a", "3")
        await n.publish_raw("a", "4", event="price")
        assert await tab.until("#price", "^4") == "4|open|"
        assert await tab.until("#log", "4$|4\\|") == "2,3,4|open|"
        assert await tab.until("#other") == "2|open|"
        assert await tab.run("() => heard") == [
            f"{name} {data}" for data in (1, 4) for name in ("price", "log", "other")
        ]
        before = await tab.run("() => renders.price")
        await n.publish_raw("b", "5")
        await tab.until("#other", "^5")
        assert await tab.run("() => renders.price") == before

        await tab.run("() => show('again', 'sum', 'log')")  # they share what is known, or add
        assert await tab.until("#again", "open") == "4|open|"
        await until_clients(n, "c", 1)
        for _ in range(10):
            await n.publish_raw("c", "1")
        assert await tab.until("#sum", "^10") == "10|open|"
        await tab.run("() => show('sum')")
        await until_clients(n, "a", 0)
        await until_clients(n, "b", 0)
        assert await clients_of(n, "c") == 1
        await tab.run("() => show('sum', 'refused')")
        assert "empty segment" in await tab.until("#refused", "[|]open[|].")
        assert await tab.until("#sum") == "10|open|", "that is nobody else's matter"
        assert ["400" in error for error in tab.errors] == [True]  # as browsers note each
        tab.errors.clear()
        told = (await n.get("/metrics")).text
        assert 'gateway_opened_total{reason="new"} 1' in told
        assert 'gateway_opened_total{reason="resumed"} 0' in told
        await tab.run("() => show()")
        await until_clients(n, "c", 0)


async def test_a_component_with_wrong_options_shows_why() -> None:
    async with (
        node() as n,
        chromium() as browser,
        page(browser, n, JAVASCRIPT / "react_app.mjs") as tab,
    ):
        await tab.until_true("() => Boolean(window.show)")
        await tab.run("() => show('wrong')")
        assert (
            await tab.until("#wrong", "closed")
            == "undefined|closed|connect() takes no attempts: -1."
        )
        assert len(tab.errors) == 1
        tab.errors.clear()


async def test_the_lines_for_vue_and_svelte_do_what_they_say(tmp_path: Path) -> None:
    documented("vue", tmp_path, "use_event_stream.mjs")
    documented("svelte", tmp_path, "event_stream.mjs")
    async with node() as n, chromium() as browser:
        for name in ("vue", "svelte"):
            app = tmp_path / f"{name}_app.mjs"
            app.write_bytes((JAVASCRIPT / app.name).read_bytes())
            async with page(browser, n, app) as tab:
                await tab.until(f"#{name}", r"\|open$")
                await n.publish_raw("a", "1", event="price")
                assert await tab.until(f"#{name}", "^1") == "1|open"
                await tab.run("() => leave()")
                await tab.until(f"#{name}", "^gone$")
                await until_clients(n, "a", 0)
