#!/usr/bin/env bash
# Write requirements.lock and build.lock anew: the newest versions within the bounds of pyproject.toml
# of what runs and of what builds, with the hashes of their files. What is installed from them is what
# was tested; nothing else has these hashes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=deploy/setup.sh
. deploy/setup.sh
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"$(find_python)" -m venv "$tools"
"$tools/bin/pip" install --quiet --disable-pip-version-check "pip-tools>=7.5,<8"

# lock FILE ARGUMENT...: what `pip-compile` makes of the arguments.
lock() {
    CUSTOM_COMPILE_COMMAND="bash deploy/lock.sh" "$tools/bin/pip-compile" --quiet --upgrade \
        --generate-hashes --strip-extras --no-emit-options --no-emit-index-url --no-emit-trusted-host \
        --output-file "deploy/$1" "${@:2}"
}

# It reckons for the Python that it runs on. Before 3.11.3 (Debian 12 has 3.11.2) redis needs one package more.
lock requirements.lock pyproject.toml - "$@" <<<"async-timeout>=4.0.3,<6"
lock build.lock --build-deps-for wheel --only-build-deps pyproject.toml "$@"
