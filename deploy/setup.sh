# shellcheck shell=bash
# Sourced by start.sh and by the tests' run.sh: a Debian machine made ready, without asking twice.

# require_packages PROGRAM=PACKAGE...: install the packages of the programs that are missing (as
# root), or name them in one sentence and stop.
require_packages() {
    local missing=() pair
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "These Debian packages are needed and not installed: ${missing[*]}" >&2
        exit 1
    fi
    echo "Installing ${missing[*]}" >&2
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# find_python: the name of a Python that is new enough, or one sentence and the end.
find_python() {
    local python
    for python in python3 python3.13 python3.12 python3.11; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "Python 3.11 or newer is needed." >&2
    exit 1
}

# setup_venv ROOT EXTRAS: the project, editable, in ROOT/.venv; nothing if that is up to date.
setup_venv() {
    local root=$1 extras=$2 python stamp
    python=$(find_python)
    stamp=$(cat "$root/pyproject.toml" <(echo "$extras") | sha256sum | cut -d' ' -f1)
    [ "$(cat "$root/.venv/.stamp-${extras:-run}" 2>/dev/null)" != "$stamp" ] || return 0
    "$python" -c 'import ensurepip' 2>/dev/null || require_packages "no-such-program=python3-venv"
    [ -x "$root/.venv/bin/pip" ] || "$python" -m venv "$root/.venv"
    "$root/.venv/bin/pip" install --quiet --disable-pip-version-check -e "$root${extras:+[$extras]}" >&2
    echo "$stamp" >"$root/.venv/.stamp-${extras:-run}"
}
