"""deploy/Dockerfile: by its linter, and what it starts, started here."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import image
from process import child, environment, node_of
from redis_server import free_port

from gateway.settings import NO_SETTINGS, SETTINGS

HADOLINT = Path(sys.executable).with_name("hadolint")

IGNORE = image.ROOT / ".dockerignore"

KEY = "k" * 32


def test_the_linter_finds_nothing() -> None:
    found = subprocess.run(
        [HADOLINT, image.DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (0, "")


def test_an_image_is_built_of_what_it_copies_and_of_nothing_else() -> None:
    """No key, no history and no cache of a working copy can get into one."""
    copied = {
        source
        for name, rest in image.instructions()
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    first, *others = re.sub(r"(?m)^#.*\n", "", IGNORE.read_text("utf-8")).splitlines()
    assert first == "*"
    assert {line.removeprefix("!") for line in others if line.startswith("!")} == copied
    assert all((image.ROOT / source).exists() for source in copied)
    assert "**/__pycache__" in others


def test_nothing_is_installed_that_has_no_hash_of_ours() -> None:
    commands = [
        command
        for name, rest in image.instructions()
        if name == "RUN"
        for command in rest.split("&&")
        if re.search(r"\bpip\b.*\b(install|wheel)\b", command)
    ]
    assert len(commands) == 4
    for command in commands:
        assert ("--require-hashes" in command) != ("--no-index" in command), command


def test_every_setting_that_a_file_of_deployment_names_is_one() -> None:
    """Those of TOML files and of commands are found out where these are started."""
    known = {setting.variable for setting in SETTINGS.values()} | NO_SETTINGS
    named = {
        (variable, path.name)
        for path in (image.ROOT / "deploy").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
        for variable in re.findall(r"\bGATEWAY_[A-Z_]+", path.read_text("utf-8"))
    }
    assert len(named) > 10
    assert {(name, path) for name, path in named if name not in known} == set()


def test_a_container_is_nobody_in_particular_and_shows_it_by_number() -> None:
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", image.USER)


async def test_a_container_without_a_key_refuses_to_start() -> None:
    command = image.here([*image.ENTRYPOINT, *image.COMMAND])
    async with child(*command, **image.variables()) as node:
        await node.until("but the node has no keys")
        assert await node.wait() == 2


async def test_a_container_is_healthy_as_long_as_it_runs_and_ends_in_order() -> None:
    ports = {"GATEWAY_BIND": "127.0.0.1:0", "GATEWAY_ADMIN_BIND": f"127.0.0.1:{free_port()}"}
    variables = image.variables(GATEWAY_JWT_KEY=KEY, **ports)

    def health() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            image.here(image.HEALTHCHECK),
            env=environment(**variables, http_proxy="http://127.0.0.1:9"),
            capture_output=True,
            text=True,
            check=False,
        )

    command = image.here([*image.ENTRYPOINT, *image.COMMAND])
    async with node_of(*command, tls=None, **variables) as node:
        assert health().returncode == 0, health().stderr
        node.signal(signal.SIGTERM)
        assert await node.wait() == 0
    assert (health().returncode, "no answer" in health().stderr) == (1, True)
