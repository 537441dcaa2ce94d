#!/usr/bin/env bash
# Write requirements.lock anew: the newest versions within the bounds of pyproject.toml, with the
# hashes of their files. What is installed from it is what was tested; nothing else has these hashes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=deploy/setup.sh
. deploy/setup.sh
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"$(find_python)" -m venv "$tools"
"$tools/bin/pip" install --quiet --disable-pip-version-check "pip-tools>=7.5,<8"
CUSTOM_COMPILE_COMMAND="bash deploy/lock.sh" "$tools/bin/pip-compile" --quiet --upgrade \
    --generate-hashes --strip-extras --no-emit-options --no-emit-index-url --no-emit-trusted-host \
    --output-file deploy/requirements.lock pyproject.toml "$@"
