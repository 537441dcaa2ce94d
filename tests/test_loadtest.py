"""What measures must work: the load generator, and the programs that are built on it."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from process import environment

LOADTEST = Path(__file__).parent.parent / "loadtest"

README = (LOADTEST / "README.md").read_text("utf-8")


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(LOADTEST / program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)


@pytest.mark.parametrize("source", ["fanout.c", "crowd.c", "relay.c"])
def test_the_load_generators_compile_without_a_warning(source: str) -> None:
    command = ["cc", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-pthread"]
    subprocess.run([*command, str(LOADTEST / source)], check=True)


@pytest.mark.parametrize("program", ["redis", "faults", "abuse", "peers", "roll", "relay"])
def test_what_a_program_can_do_is_in_its_readme(program: str) -> None:
    """And what it cannot is refused with a sentence that names all it can."""
    done = _run(program, "nonsense")
    assert done.returncode == 2
    assert f"usage: loadtest/{program} " in done.stderr
    offered = re.findall(r"'([a-z-]+)'", done.stderr.partition("choose from")[2])
    named = offered or re.findall(r"[a-z-]+", done.stderr.partition("choose from")[2])
    assert "all" in named
    for name in named:
        assert f"`{name}`" in README or name == "all"


def test_a_node_on_redis_is_measured_beside_one_on_its_memory() -> None:
    done = _run("redis", "publish", "-k", "1", "--share", "0.01")
    assert done.returncode == 0, done.stderr
    assert re.search(r"(?m)^pub_per_s +memory +1 ", done.stdout)
    assert re.search(r"(?m)^pub_per_s +redis, one node +[\d.]+ ", done.stdout)
    assert set(re.findall(r"(?m)^lost .* (\S+)$", done.stdout)) == {"0"}


def test_a_fault_is_judged() -> None:
    done = _run("faults", "kill-nodes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("kill-nodes: right ")
    assert "lost silently: 0, doubled: 0, gaps told: none" in done.stdout


@pytest.mark.parametrize(
    ("scenario", "figure"),
    [
        ("storm", r"let in later +at most 100 +1 +120 "),
        ("slowloris", r"head: 408 +with 1 MiB +1 +[1-9]"),
    ],
)
def test_abuse_is_judged(scenario: str, figure: str) -> None:
    done = _run("abuse", scenario, "-k", "1", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": right\n" in done.stdout
    assert re.search(f"(?m)^{figure}", done.stdout)
    assert set(re.findall(r"(?m)^lost .* (\S+)$", done.stdout)) == {"0"}


def test_the_cost_of_a_token_is_measured() -> None:
    done = _run("abuse", "tokens", "-k", "1", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"(?m)^connect_cpu_ms +HS256 +\S", done.stdout)
    assert set(re.findall(r"(?m)^errors .* (\S+)$", done.stdout)) == {"0"}


def test_what_a_relayed_token_costs_is_measured() -> None:
    done = _run("relay", "memory", "-k", "1", "--streams", "20", "--seconds", "0.5")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"(?m)^\| memory \| (\w+) \| (\d) \| ([\d.]+) \| .*\|$", done.stdout)
    assert [row[:2] for row in rows] == [(f, v) for f in ("openai", "anthropic") for v in "01"]
    assert all(float(us) > 0 for *_, us in rows)
    assert "lost, held or broken: 0" in done.stdout


@pytest.mark.parametrize(("program", "last"), [("roll", "prometheus"), ("sizing", "openssl")])
def test_what_a_program_needs_is_named(program: str, last: str) -> None:
    command = [sys.executable, str(LOADTEST / program), *(["term"] if program == "roll" else [])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(PATH="/nowhere"))
    assert done.returncode == 2, done.stderr
    assert re.search(rf"error: not installed: cc, .*{last}; see loadtest/README.md", done.stderr)


def test_what_a_client_costs_is_measured_and_reckoned_with() -> None:
    done = _run("sizing", "--clients", "5000", "-k", "1", "--quick")
    if os.geteuid() != 0:
        assert done.returncode == 2
        assert "readable for root alone" in done.stderr
        return
    assert done.returncode == 0, done.stdout + done.stderr
    for start in ("HAProxy, TLS", "nginx, TLS"):
        assert re.search(rf"(?m)^{start}: KiB/stream +[1-9]", done.stdout)
    assert re.search(r"(?m)^5,000 clients, .*\n +\d\S* cores at 50%", done.stdout)


SVG = "{http://www.w3.org/2000/svg}"


def test_peers_are_measured_in_one_table_and_drawn(tmp_path: Path) -> None:
    """The gateway by itself, as its peers are yet to be installed."""
    picture = tmp_path / "peers.svg"
    share = ("-k", "1", "--share", "0.01", "--only", "gateway")
    done = _run("peers", *share, "--picture", str(picture))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = dict(re.findall(r"(?m)^\| (\S.*) \| ([^|]+) \|$", done.stdout))
    assert float(rows["deliveries a second"].replace(",", "")) > 0
    assert rows["when they read on, of 2,000 events they get"] == "20"
    assert rows["... missed without being told"] == "0"
    assert rows["**lost, doubled, closed, errors**, all runs"] == "0, 0, 0, 0"
    texts = [text.text for text in ElementTree.parse(picture).iter(f"{SVG}text")]
    assert texts.count("gateway") == 6
    assert rows["deliveries a second"] in texts


def test_a_server_that_is_none_is_not_measured() -> None:
    done = _run("peers", "--only", "gateway,mercure")
    assert done.returncode == 2
    assert "there is no server 'mercure'; there are: gateway, nchan, " in done.stderr


def test_a_picture_shows_each_value_by_its_length_its_name_and_its_number() -> None:
    picture = runpy.run_path(str(LOADTEST / "picture.py"))
    values = {"a": 1_234_567.0, "b": 617_283.5, "<c>": 0.0}
    panels = [picture["Panel"]("Speed", "per second", values), picture["Panel"]("Size", "KiB", {})]
    root = ElementTree.fromstring(picture["draw"]("Title & more", "below", panels, ["foot"]))
    bars = [bar for bar in root.iter(f"{SVG}rect") if "bar" in bar.get("class", "")]
    longest, half, none = (float(bar.get("width", "")) for bar in bars)
    assert half == pytest.approx(longest / 2, abs=0.1)
    assert none == 0
    assert [bar.get("class") for bar in bars] == ["bar marked", "bar", "bar"]
    texts = {text.text: float(text.get("y", "")) for text in root.iter(f"{SVG}text")}
    assert {"Title & more", "below", "Speed", "per second", "Size", "foot"} < set(texts)
    for name, number in (("a", "1,230,000"), ("b", "617,000"), ("<c>", "0")):
        assert texts[name] == texts[number]
    assert "b 617,000" in (root.findtext(f"{SVG}desc") or "")
    below = max(texts.values())
    assert below < float(root.get("height", ""))


def test_a_picture_can_be_read_on_light_and_dark_paper() -> None:
    style = runpy.run_path(str(LOADTEST / "picture.py"))["STYLE"]
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for scheme in (light, dark):
        paper, *inks = (
            _luminance(re.findall(rf"{kind} {{ [^}}]*?(?:fill|stroke): (#\w+)", scheme)[0])
            for kind in (r"\.paper", r"text", r"\.note", r"\.bar", r"\.bar\.marked")
        )
        for ink, least in zip(inks, (7, 4.5, 2, 3), strict=True):
            bright, faint = max(paper, ink), min(paper, ink)
            assert (bright + 0.05) / (faint + 0.05) > least


def _luminance(color: str) -> float:
    """WCAG 2.2's relative luminance."""
    channels = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
