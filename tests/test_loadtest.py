"""What measures must work: the load generator, and the programs that are built on it."""

import re
import subprocess
from pathlib import Path

import pytest
from process import environment

LOADTEST = Path(__file__).parent.parent / "loadtest"

README = (LOADTEST / "README.md").read_text("utf-8")


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(LOADTEST / program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)


@pytest.mark.parametrize("source", ["fanout.c", "crowd.c"])
def test_the_load_generators_compile_without_a_warning(source: str) -> None:
    command = ["cc", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-pthread"]
    subprocess.run([*command, str(LOADTEST / source)], check=True)


@pytest.mark.parametrize("program", ["redis", "faults", "abuse", "roll"])
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
