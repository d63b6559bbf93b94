#!/bin/sh
# Runs uv with the given arguments: the one on PATH if it is new enough, else one of our own in .uv/.
# PYTHON=... names the interpreter that both use.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
unset VIRTUAL_ENV   # an activated environment elsewhere must not receive what is installed here

if [ -n "${PYTHON:-}" ]; then UV_PYTHON=$PYTHON; export UV_PYTHON; fi

new_enough() { # UV
    "$1" --version 2>/dev/null | grep -Eq '^uv (0\.(1[3-9]|[2-9][0-9])|[1-9][0-9]*)\.'
}

if found=$(command -v uv) && new_enough "$found"; then exec "$found" "$@"; fi
own=$root/.uv/bin/uv
if new_enough "$own"; then exec "$own" "$@"; fi

for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        rm -rf "$root/.uv"
        "$python" -m venv "$root/.uv" >&2 || {
            echo "$python cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv." >&2
            exit 1
        }
        "$root/.uv/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.13' >&2
        exec "$own" "$@"
    fi
done
echo "Python 3.11 or newer is needed and ${PYTHON:-python3} is $("${PYTHON:-python3}" --version 2>&1 || true);" \
    "install one, or name it: make demo PYTHON=/path/to/python3.12" >&2
exit 1
