#!/usr/bin/env bash
# Set everything up in .venv and run a node; further arguments go to `gateway serve`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=deploy/setup.sh
. "$here/setup.sh"
setup_venv "$here/.." ""
exec "$here/../.venv/bin/gateway" serve "$@"
