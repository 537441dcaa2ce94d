"""The unit of deploy/systemd: as systemd reads it, started as it says, in step with the gateway."""

import re
import shlex
import shutil
import signal
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
from process import GATEWAY, child, node_of
from service_manager import ServiceManager

from gateway.config import MAX_WORKERS, Config
from gateway.server import RESERVED_DESCRIPTORS, stop_seconds
from gateway.settings import load
from gateway.supervisor import HUNG_ROUNDS, HUNG_SECONDS, START_ROUNDS

SYSTEMD = Path(__file__).parent.parent / "deploy" / "systemd"
UNIT = (SYSTEMD / "gateway.service").read_text("utf-8")
SETTINGS = SYSTEMD / "gateway.toml"

EXPOSURE = 1.5
"""Of ten, as ``systemd-analyze security`` counts; the network alone is most of it."""


def directives() -> dict[str, list[str]]:
    """What the unit says, by name, as often as it says it."""
    found = defaultdict(list)
    for name, value in re.findall(r"(?m)^(\w+)=(.*)$", UNIT):
        found[name].append(value)
    return found


def directive(name: str) -> str:
    [value] = directives()[name]
    return value


def seconds(name: str) -> float:
    return float(directive(name).removesuffix("s"))


def environment(credentials: str = "/run") -> dict[str, str]:
    """The variables that the unit sets, where its credentials are in that folder."""
    pairs = (pair for line in directives()["Environment"] for pair in shlex.split(line))
    return dict(pair.replace("%d", credentials).split("=", 1) for pair in pairs)


def sysctl() -> dict[str, str]:
    text = (SYSTEMD / "90-gateway.conf").read_text("utf-8")
    return dict(re.findall(r"(?m)^([\w.-]+) = (.*)$", text))


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with programs that are on this machine."""
    text = UNIT.replace("/opt/gateway/bin/gateway", GATEWAY).replace("/bin/kill", "/bin/true")
    (tmp_path / "gateway.service").write_text(text)
    return tmp_path / "gateway.service"


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False
    )


def test_systemd_understands_every_line_of_the_unit(unit: Path) -> None:
    found = analyze("verify", "--man=no", unit)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")
    unit.write_text(unit.read_text() + "[Service]\nWatchdogSecs=30\n")
    assert "WatchdogSecs" in analyze("verify", "--man=no", unit).stderr


def test_the_unit_exposes_little_of_the_machine(unit: Path) -> None:
    found = analyze("security", "--offline=true", f"--threshold={EXPOSURE * 10:g}", unit)
    assert found.returncode == 0, found.stdout


def test_what_the_unit_allows_in_time_is_what_the_gateway_takes() -> None:
    configured = load({}, environment(), SETTINGS).config
    assert seconds("TimeoutStopSec") == stop_seconds(configured)
    assert seconds("TimeoutStartSec") >= HUNG_SECONDS / HUNG_ROUNDS * START_ROUNDS
    assert seconds("WatchdogSec") >= HUNG_SECONDS, "no sooner than a supervisor kills a worker"
    assert directive("Type") == "notify"
    assert directive("NotifyAccess") == "main"


def test_a_stop_reaches_the_supervisor_first_and_alone() -> None:
    assert directive("KillMode") == "mixed"
    assert directive("KillSignal") == "SIGTERM"


def test_the_limits_of_the_kernel_reach_as_far_as_those_of_the_unit_and_the_gateway() -> None:
    descriptors = int(directive("LimitNOFILE"))
    assert RESERVED_DESCRIPTORS < descriptors <= int(sysctl()["fs.nr_open"])
    assert descriptors <= int(sysctl()["fs.file-max"])
    assert int(directive("TasksMax")) >= 16 * MAX_WORKERS
    assert int(sysctl()["net.core.somaxconn"]) >= Config().backlog
    for name in sysctl():
        assert Path("/proc/sys", *name.split(".")).exists(), name


async def test_the_unit_starts_a_node_that_says_so_and_ends_in_order(
    tmp_path: Path, redis_port: int, new_prefix: str
) -> None:
    """With the files that it names, but for addresses: those come as gateway.env would say them."""
    credentials = dict(value.split(":") for value in directives()["LoadCredential"])
    for name in credentials:
        (tmp_path / name).write_text("s" * 48)
    variables = environment(str(tmp_path))
    manager = ServiceManager(str(tmp_path / "notify"))
    variables |= {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
    variables |= {"GATEWAY_BIND": "127.0.0.1:0", "GATEWAY_ADMIN_BIND": "127.0.0.1:0"}
    variables |= {"GATEWAY_REDIS": f"redis://127.0.0.1:{redis_port}"}
    variables |= {"GATEWAY_REDIS_PREFIX": new_prefix, "GATEWAY_WORKERS": "2"}
    variables |= {"GATEWAY_DRAIN_GRACE": "0", "GATEWAY_DRAIN_SECONDS": "0"}
    shutil.copy(SETTINGS, tmp_path / "gateway.toml")
    command = [
        word.replace("/opt/gateway/bin/gateway", GATEWAY).replace("/etc/gateway", str(tmp_path))
        for word in shlex.split(directive("ExecStart"))
    ]
    async with node_of(*command, tls=None, **variables) as node:
        assert await manager.hears_of("READY") == {"READY": "1"}
        assert (await node.get("/events/a")).status_code == 401, "it has its secret"
        assert (await node.get("/")).status_code == 404, "and its file"
        node.signal(signal.SIGTERM)
        await manager.hears_of("STOPPING")
        assert await node.wait() == 0
    manager.close()


async def test_a_setting_that_cannot_be_used_is_not_tried_again() -> None:
    async with child(GATEWAY, "serve", GATEWAY_BIND="0.0.0.0:0") as node:
        assert await node.wait() == int(directive("RestartPreventExitStatus"))
