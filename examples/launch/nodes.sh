#!/bin/sh
# A command of corsd or calib on several nodes: the same line on every node, by hand or from any scheduler.
#   HOST=node1 NNODES=2 PER_NODE=4 sh nodes.sh corsd train --preset imagenet --out /shared/runs/imagenet
# HOST is the first node.  The run folder must be one that all nodes see; the first process writes it.
set -eu
exec torchrun --nnodes "${NNODES:-1}" --nproc-per-node "${PER_NODE:-1}" --rdzv-backend c10d \
    --rdzv-endpoint "${HOST:-localhost}:${PORT:-29500}" --rdzv-id "${JOB:-run}" --no-python "$@"
