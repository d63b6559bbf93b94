#!/bin/sh
# Brings .venv to what uv.lock says and prints how long that took.
set -eu
cd "$(dirname "$0")/.."
begin=$(date +%s)
echo "Setting up .venv (torch alone is several GB where it is not cached yet) ..."
# Compiled once here: an import of torch from source costs seconds in each of the many short processes.
UV_COMPILE_BYTECODE=1 tools/uv.sh sync --locked
touch .venv/.ready
echo "Set-up took $(($(date +%s) - begin)) s."
