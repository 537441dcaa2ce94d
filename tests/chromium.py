"""A real Chromium, Debian's, driven by playwright; with many tabs of one profile, if need be.

playwright lives on asyncio, in a thread of its own; what is asked of it here is awaited on trio.
"""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from shutil import which
from typing import Any, TypeVar

import trio
from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Playwright,
    async_playwright,
)
from playwright.async_api import TimeoutError as PlaywrightTimeout
from process import PATIENCE, child, eventually

FLAGS = (
    "--no-sandbox",  # Chromium refuses to run as root with it
    "--disable-gpu",
    "--disable-quic",
    "--no-proxy-server",
)

Result = TypeVar("Result")


class _Loop:
    """asyncio in a thread, for as long as the block takes."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="playwright")

    def __enter__(self) -> "_Loop":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def do(self, awaited: Awaitable[Result]) -> Result:
        """The result of what only asyncio can await; no later than PATIENCE allows."""

        async def bounded() -> Result:
            return await asyncio.wait_for(awaited, PATIENCE)

        future = asyncio.run_coroutine_threadsafe(bounded(), self._loop)
        return await trio.to_thread.run_sync(future.result)


class Tab:
    """A page. Selectors are playwright's, of which CSS is a part."""

    def __init__(self, loop: _Loop, page: Page) -> None:
        self._loop = loop
        self.page = page
        self.errors: list[str] = []
        """What the console has shown as an error, violations of the page's CSP included, and what
        scripts have thrown."""
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _hear(self, said: ConsoleMessage) -> None:
        if said.type == "error":
            self.errors.append(said.text)

    async def do(self, act: Callable[[Page], Awaitable[Result]]) -> Result:
        """Anything that playwright can do: ``await tab.do(lambda page: page.reload())``."""

        async def acted() -> Result:
            return await act(self.page)

        return await self._loop.do(acted())

    async def open(self, url: str) -> None:
        await self.do(lambda page: page.goto(url))

    async def run(self, script: str, argument: Any = None) -> Any:
        """What a JavaScript function, of one argument, returns in the page; awaited, if need be."""
        return await self.do(lambda page: page.evaluate(script, argument))

    async def click(self, selector: str) -> None:
        await self.do(lambda page: page.click(selector))

    async def fill(self, selector: str, text: str) -> None:
        await self.do(lambda page: page.fill(selector, text))

    async def until(self, selector: str, pattern: str = "") -> str:
        """The text of the first element that is like this, once there is one."""
        texts: list[str] = []

        async def is_there() -> bool:
            found = await self.do(lambda page: page.locator(selector).all_text_contents())
            texts[:] = (text for text in found if re.search(pattern, text))
            return bool(texts)

        await eventually(is_there)
        return texts[0]

    async def until_true(self, script: str, argument: Any = None) -> None:
        """Return once a JavaScript function, of one argument, returns what is true."""

        async def is_true() -> bool:
            return bool(await self.run(script, argument))

        await eventually(is_true)

    async def crash(self) -> None:
        """End the tab's process as a fault would; the tab is of no use afterwards."""

        async def crashed(page: Page) -> None:
            session = await page.context.new_cdp_session(page)
            gone = asyncio.Event()
            page.on("crash", lambda _: gone.set())
            asking = asyncio.ensure_future(session.send("Page.crash"))
            # It is answered or not, as it happens; playwright must not find it cancelled.
            asking.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
            await gone.wait()

        await self.do(crashed)

    async def close(self) -> None:
        await self.do(lambda page: page.close())


class Chromium:
    """One profile, whose tabs share what tabs of a user do."""

    def __init__(self, loop: _Loop, context: BrowserContext) -> None:
        self._loop = loop
        self.context = context

    @property
    def version(self) -> str:
        browser = self.context.browser
        assert browser is not None
        return browser.version

    async def tab(self, url: str = "") -> Tab:
        async def made() -> Tab:  # where playwright lives, as it is told what to listen to
            return Tab(self._loop, await self.context.new_page())

        tab = await self._loop.do(made())
        if url:
            await tab.open(url)
        return tab

    async def set_offline(self, offline: bool) -> None:
        await self._loop.do(self.context.set_offline(offline))


@asynccontextmanager
async def chromium(*flags: str, **options: Any) -> AsyncIterator[Chromium]:
    """A headless Chromium; ``options`` are those of playwright's ``Browser.new_context``."""
    with _Loop() as loop:
        async with _playwright(loop) as playwright:
            browser = await loop.do(
                playwright.chromium.launch(executable_path=which("chromium"), args=[*FLAGS, *flags])
            )
            context = await loop.do(browser.new_context(**options))
            try:
                yield Chromium(loop, context)
            finally:
                with trio.CancelScope(shield=True):
                    await loop.do(browser.close())


class Profiles:
    """A Chromium for one test after another, each with a profile of its own: to launch one takes
    longer than most of what is done with it."""

    def __init__(self, loop: _Loop, browser: Browser) -> None:
        self._loop = loop
        self._browser = browser

    @asynccontextmanager
    async def __call__(self, **options: Any) -> AsyncIterator[Chromium]:
        """A new profile; ``options`` as for `chromium`."""
        context = await self._loop.do(self._browser.new_context(**options))
        try:
            yield Chromium(self._loop, context)
        finally:
            with trio.CancelScope(shield=True):
                await self._loop.do(context.close())


@contextmanager
def profiles() -> Iterator[Profiles]:
    """Outside of any trio run; what is made of it is used inside of them."""
    with _Loop() as loop:
        playwright = trio.run(loop.do, async_playwright().start())
        try:
            path = which("chromium")
            launching = playwright.chromium.launch(executable_path=path, args=[*FLAGS])
            browser = trio.run(loop.do, launching)
            yield Profiles(loop, browser)
            trio.run(loop.do, browser.close())
        finally:
            trio.run(loop.do, playwright.stop())


@asynccontextmanager
async def chromium_of_a_user(directory: Path) -> AsyncIterator[Chromium]:
    """One whose tabs can be hidden, frozen, and kept for going back to: playwright sees to it that
    those which it starts itself cannot. ``directory`` is empty."""
    own = ("--headless", "--no-first-run", f"--user-data-dir={directory}")
    async with child("chromium", *FLAGS, *own, "--remote-debugging-port=0") as process:
        address = (await process.until(r"DevTools listening on (\S+)"))[1]
        with _Loop() as loop:
            async with _playwright(loop) as playwright:
                browser = await loop.do(_connect(playwright, address))
                yield Chromium(loop, browser.contexts[0])


async def _connect(playwright: Playwright, address: str) -> Browser:
    """Who connects while Chromium opens its first tab may never hear of it: then once more."""
    connect = partial(playwright.chromium.connect_over_cdp, address, no_defaults=True)
    try:
        return await connect(timeout=5_000)
    except PlaywrightTimeout:
        return await connect(timeout=10_000)


@asynccontextmanager
async def _playwright(loop: _Loop) -> AsyncIterator[Playwright]:
    playwright = await loop.do(async_playwright().start())
    try:
        yield playwright
    finally:
        with trio.CancelScope(shield=True):
            await loop.do(playwright.stop())
