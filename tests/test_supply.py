"""What is installed: the bounds in pyproject.toml, the lock of the image, and what is audited."""

import json
import re
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import audit
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "deploy" / "requirements.lock"
BUILD_LOCK = ROOT / "deploy" / "build.lock"

PYTHONS = ("3.11.0", "3.11.2", "3.12.0", "3.13.0", "3.14.0")
"""Versions that ask for different packages: Debian 12 has the second one."""

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
NEEDED = list(map(Requirement, PROJECT["project"]["dependencies"]))
FOR_TESTS = [
    Requirement(text)
    for extra in PROJECT["project"]["optional-dependencies"].values()
    for text in extra
]
FOR_BUILDS = list(map(Requirement, PROJECT["build-system"]["requires"]))


def locked(lock: Path = LOCK) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of each package that a lock names."""
    text = re.sub(r"(?m)^ *#.*\n", "", lock.read_text("utf-8")).replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        pin, *hashes = line.split()
        name, _, pinned = pin.partition("==")
        found[name] = (pinned, hashes)
    return found


@pytest.mark.parametrize("requirement", [*NEEDED, *FOR_TESTS, *FOR_BUILDS], ids=str)
def test_every_dependency_is_bounded_on_both_sides(requirement: Requirement) -> None:
    operators = {each.operator for each in requirement.specifier}
    assert operators == {">=", "<"}, "the oldest that was tried, and the first that may break"


@pytest.mark.parametrize(("lock", "needed"), [(LOCK, NEEDED), (BUILD_LOCK, FOR_BUILDS)])
def test_a_lock_pins_each_dependency_within_its_bounds(
    lock: Path, needed: list[Requirement]
) -> None:
    pins = locked(lock)
    for requirement in needed:
        pinned, _ = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), f"{requirement}, locked at {pinned}"


@pytest.mark.parametrize("lock", [LOCK, BUILD_LOCK])
def test_a_lock_is_of_versions_and_hashes_alone(lock: Path) -> None:
    """No index, no URL, no option: where files come from is for who installs them."""
    text = lock.read_text("utf-8")
    assert not re.search(r"://|--(?!hash=sha256:[0-9a-f]{64}\b)|@", text)
    for name, (pinned, hashes) in locked(lock).items():
        assert name == canonicalize_name(name)
        assert re.fullmatch(r"[0-9][0-9a-z.]*", pinned), name
        assert hashes, name


def installed(name: str) -> str:
    """The version of a package here; empty where it is not, since this Python needs none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_names_all_that_is_needed_and_the_version_of_each_that_fits(python: str) -> None:
    pins = locked()
    marked = {
        "extra": "",
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
    }
    reached = {canonicalize_name(requirement.name) for requirement in NEEDED}
    todo = [name for name in reached if installed(name) == pins[name][0]]
    while todo:
        for text in requires(todo.pop()) or ():
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            if requirement.marker is not None and not requirement.marker.evaluate(marked):
                continue
            assert requirement.specifier.contains(pins[name][0]), requirement
            if name not in reached and installed(name) == pins[name][0]:
                todo.append(name)
            reached.add(name)
    assert not {"pytest", "atheris", "pip"} & set(pins)


# --- the audit ------------------------------------------------------------------------------------


def audited(tmp_path: Path, program: str) -> int:
    """What the audit ends with, where ``program`` stands for pip-audit."""
    stub = tmp_path / "pip-audit"
    stub.write_text(f"#!{sys.executable}\nimport json, sys, time\n{program}\n")
    stub.chmod(0o755)
    return audit.main(str(LOCK), str(stub), seconds=10)


def reporting(*packages: Mapping[str, object]) -> str:
    text = json.dumps({"dependencies": packages, "fixes": []})
    return f"open(sys.argv[sys.argv.index('--output') + 1], 'w').write({text!r}); sys.exit(1)"


WELL = {"name": "a", "version": "1", "vulns": []}
ILL = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


def test_a_known_vulnerability_fails_the_audit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audited(tmp_path, reporting(WELL, ILL, UNKNOWN)) == 1
    assert capsys.readouterr().out == "audit: b 2: CVE-1, mended in: 3\n"


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (reporting(WELL, UNKNOWN), "1 of 2 packages audited, no vulnerability known"),
        (reporting(UNKNOWN), "knows none of 1 packages; nothing was audited"),
        ("sys.exit('no network')", "cannot be reached; nothing was audited"),
    ],
)
def test_an_audit_that_finds_or_learns_nothing_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], program: str, said: str
) -> None:
    assert audited(tmp_path, program) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("audit: ")
    assert line.endswith(said)


def test_an_audit_that_hangs_is_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub = tmp_path / "pip-audit"
    stub.write_text("#!/bin/sh\nexec sleep 60\n")
    stub.chmod(0o755)
    assert audit.main(str(LOCK), str(stub), seconds=0.2) == 0
    assert capsys.readouterr().out == "audit: no answer in 0.2 s; nothing was audited\n"
