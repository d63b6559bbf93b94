#!/bin/sh
# What decides whether the GPU path works, in ten minutes; writes runs/gpu.json.  Runs to its end on a CPU, too.
#   PYTHON=/path/python   another interpreter, such as that of an image with its own CUDA build of torch
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3)
# Without an installation the packages are read from the checkout.
for package in shared-core corsd fsd calib; do
    PYTHONPATH="packages/$package/src${PYTHONPATH:+:$PYTHONPATH}"
done
export PYTHONPATH="$PYTHONPATH"
exec "$python" -m benchmarks.core.gpu --out "${OUT:-runs}/gpu.json" "$@"
