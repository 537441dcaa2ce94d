"""What a service manager is told, over a real socket, by nodes and by what they are made of."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from certificates import Files
from process import NodeProcess
from process import node as run_node
from service_manager import ServiceManager

from gateway import notify
from gateway.config import Config
from gateway.server import stop_seconds


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceManager]:
    """Of whom this process and its children know, and who does not watch them yet."""
    manager = ServiceManager(str(tmp_path / "notify"))
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    yield manager
    manager.close()


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


async def ends_in_order(manager: ServiceManager, node: NodeProcess, config: Config) -> None:
    """And never has another process spoken: systemd's NotifyAccess=main hears no other."""
    node.signal(signal.SIGTERM)
    assert await manager.hears_of("STOPPING") == {
        "STOPPING": "1",
        "EXTEND_TIMEOUT_USEC": str(round(stop_seconds(config) * 1e6)),
    }
    assert await node.wait() == 0
    assert manager.speakers == {node.process.pid}


async def reloads(manager: ServiceManager, node: NodeProcess) -> None:
    before = time.monotonic_ns() // 1000
    node.signal(signal.SIGHUP)
    message = await manager.hears_of("RELOADING")
    assert message["RELOADING"] == "1"
    assert before < int(message["MONOTONIC_USEC"]) < time.monotonic_ns() // 1000, "of its own clock"
    assert await manager.hears_of("READY") == {"READY": "1"}


async def test_a_node_says_when_it_serves_turns_reloads_and_stops(
    manager: ServiceManager, certificate: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    flags = (*certificate.flags, "--drain-grace", "0.25", "--drain-seconds", "1.5")
    async with run_node(*flags, tls=certificate.client()) as node:
        assert await manager.hears_of("READY") == {"READY": "1"}
        assert (await node.get("/readyz")).status_code == 200
        for _ in range(3):
            assert await manager.hears() == {"WATCHDOG": "1"}
        await reloads(manager, node)
        await ends_in_order(manager, node, Config(drain_grace=0.25, drain_seconds=1.5))


async def test_of_several_workers_it_is_the_supervisor_that_speaks(
    manager: ServiceManager, redis_port: int, new_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once all of them serve; they are not told of the manager, nor of its watchdog."""
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    redis = ("--redis", f"redis://127.0.0.1:{redis_port}", "--redis-prefix", new_prefix)
    async with run_node("--workers", "2", *redis) as node:
        assert await manager.hears_of("READY") == {"READY": "1"}
        assert await node.metric("workers") == 2
        for pid in node.workers():
            assert not re.search(b"NOTIFY_SOCKET|WATCHDOG_", environment_of(pid))
        assert await manager.hears() == {"WATCHDOG": "1"}
        await reloads(manager, node)
        await ends_in_order(manager, node, Config())


async def test_a_manager_that_is_not_there_is_a_warning_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    async with run_node() as node:
        await node.until("the service manager was not told READY=1: No such file or directory")
        assert (await node.get("/readyz")).status_code == 200
        node.signal(signal.SIGTERM)
        assert await node.wait() == 0


async def test_one_that_does_not_read_holds_nobody_up(
    manager: ServiceManager, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes a few messages for it; the next one waits, for as long as that may be."""
    monkeypatch.setattr(notify, "SEND_SECONDS", 0.05)
    while not caplog.records:
        await notify.ready()
    assert caplog.messages == ["the service manager was not told READY=1: it does not read"]
    assert manager.has_heard() > 0


async def test_a_loop_that_hangs_says_nothing(
    manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the manager kills it, after twice the time that it says something in."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notify.report, trio.Event(), 1.0)
        for _ in range(5):
            await manager.hears()
        manager.has_heard()
        time.sleep(0.2)  # noqa: ASYNC251  # the hanging itself
        assert manager.has_heard() == 0
        assert await manager.hears() == {"WATCHDOG": "1"}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("usec", "pid"),
    [("", ""), ("soon", ""), ("0", ""), ("1000", "1")],
    ids=["no", "nonsense", "never", "another's"],
)
async def test_a_watchdog_that_does_not_ask_this_process_is_told_nothing(
    usec: str, pid: str, manager: ServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", pid)
    stopping = trio.Event()
    stopping.set()
    await notify.report(stopping, 1.0)  # ends, since no watch goes on
    assert manager.has_heard() == 2


async def test_an_abstract_socket_is_one_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = ServiceManager(f"@gateway-{os.getpid()}")
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    await notify.ready()
    assert await manager.hears() == {"READY": "1"}
    manager.close()


async def test_without_a_manager_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setattr(trio.socket, "socket", None)
    await notify.ready()
